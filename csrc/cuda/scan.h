#pragma once

#include "cuda/memory.h"
#include "cuda/workspace.h"
#ifdef POTLOC_CUDA_HOST
#include <numeric>
#else
#include <cub/device/device_scan.cuh>
#endif

namespace potloc::cuda {

// sums[i] = values[0] + ... + values[i]; `sums` may be `values`.
inline void sum_up(
    const char* op, const int64_t* values, int64_t* sums, int size, [[maybe_unused]] const Workspace& workspace,
    [[maybe_unused]] cudaStream_t stream) {
#ifdef POTLOC_CUDA_HOST
  std::partial_sum(values, values + size, sums);
  check(op, cuda_host::call_cub());
#else
  size_t bytes = 0;
  check(op, cub::DeviceScan::InclusiveSum(nullptr, bytes, values, sums, size, stream));
  void* temporary = workspace(static_cast<int64_t>(bytes));
  check(op, cub::DeviceScan::InclusiveSum(temporary, bytes, values, sums, size, stream));
#endif
}

}  // namespace potloc::cuda
