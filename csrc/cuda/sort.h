#pragma once

#include "cuda/memory.h"
#include "cuda/workspace.h"
#ifdef POTLOC_CUDA_HOST
#include <algorithm>
#include <tuple>
#include <utility>
#include <vector>
#else
#include <cub/device/device_radix_sort.cuh>
#endif

namespace potloc::cuda {

// Puts pairs in ascending order of the lowest `bits` of their keys; equal keys stay in order. The other arrays are as
// long; on return they may have changed places.
inline void sort_pairs(
    const char* op, uint64_t*& keys, [[maybe_unused]] uint64_t*& other_keys, uint32_t*& values,
    [[maybe_unused]] uint32_t*& other_values, int size, int bits, [[maybe_unused]] const Workspace& workspace,
    [[maybe_unused]] cudaStream_t stream) {
#ifdef POTLOC_CUDA_HOST
  std::vector<std::pair<uint64_t, uint32_t>> pairs(size);
  for (int i = 0; i < size; ++i) {
    pairs[i] = {keys[i], values[i]};
  }
  const uint64_t mask = ~uint64_t{0} >> (64 - bits);
  std::stable_sort(
      pairs.begin(), pairs.end(), [&](const auto& a, const auto& b) { return (a.first & mask) < (b.first & mask); });
  for (int i = 0; i < size; ++i) {
    std::tie(keys[i], values[i]) = pairs[i];
  }
  check(op, cuda_host::call_cub());
#else
  cub::DoubleBuffer<uint64_t> both_keys(keys, other_keys);
  cub::DoubleBuffer<uint32_t> both_values(values, other_values);
  size_t bytes = 0;
  const auto sort = [&](void* temporary) {
    check(op, cub::DeviceRadixSort::SortPairs(temporary, bytes, both_keys, both_values, size, 0, bits, stream));
  };
  sort(nullptr);
  sort(workspace(static_cast<int64_t>(bytes)));
  keys = both_keys.Current();
  other_keys = both_keys.Alternate();
  values = both_values.Current();
  other_values = both_values.Alternate();
#endif
}

}  // namespace potloc::cuda
