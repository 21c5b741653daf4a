// What the kernels need of CUDA. The tests compile the same kernels with the host compiler (POTLOC_CUDA_HOST), against
// a harness that runs each CUDA thread as a fiber; so kernels get shared memory through `shared_memory`, and are
// launched by `launch`.
#pragma once

#include <torch/headeronly/util/Exception.h>

#include <cstddef>
#include <cstdint>

#ifdef POTLOC_CUDA_HOST
#include "cuda_host.h"
#else
#include <cuda_runtime.h>
#endif

namespace potloc::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// The block's dynamic shared memory, as many bytes as its launch asked for, aligned to 16.
template <typename T>
__device__ T* shared_memory() {
#ifdef POTLOC_CUDA_HOST
  return static_cast<T*>(cuda_host::shared_memory());
#else
  extern __shared__ __align__(16) unsigned char bytes[];
  return reinterpret_cast<T*>(bytes);
#endif
}

struct Grid {
  dim3 blocks, threads;
  size_t shared_bytes;
  cudaStream_t stream;
};

template <typename T>
struct Same {
  using type = T;
};

// Raises an error. It is taken from the runtime first: left there, it would fail the next call that looks, as CUB does
// after its launches.
inline void check(const char* op, cudaError_t error) {
  if (error != cudaSuccess) {
    cudaGetLastError();
    STD_TORCH_CHECK(false, op, ": CUDA says ", cudaGetErrorString(error));
  }
}

// Starts a kernel; an error of the launch is raised.
template <typename... P>
void launch(const char* op, void (*kernel)(P...), const Grid& grid, typename Same<P>::type... arguments) {
#ifdef POTLOC_CUDA_HOST
  check(op, cuda_host::launch(grid.blocks, grid.threads, grid.shared_bytes, [&] { kernel(arguments...); }));
#else
  cudaError_t error = cudaSuccess;
  if (grid.shared_bytes > 48 * 1024) {
    error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(grid.shared_bytes));
  }
  if (error == cudaSuccess) {
    void* pointers[] = {&arguments...};
    const void* code = reinterpret_cast<const void*>(kernel);  // CUDA 12.4 takes no kernel of any type here
    error = cudaLaunchKernel(code, grid.blocks, grid.threads, pointers, grid.shared_bytes, grid.stream);
  }
  check(op, error);
#endif
}

inline unsigned blocks_for(int64_t items, int64_t per_block) {
  return static_cast<unsigned>((items + per_block - 1) / per_block);
}

}  // namespace potloc::cuda
