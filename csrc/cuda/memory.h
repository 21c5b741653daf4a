// Zeroed memory, and the way back to the host: for results whose size must be known before they can be written.
#pragma once

#include <array>
#include <cstring>

#include "cuda/platform.h"

namespace potloc::cuda {

template <typename T>
void set_zero([[maybe_unused]] const char* op, T* values, int64_t size, [[maybe_unused]] cudaStream_t stream) {
#ifdef POTLOC_CUDA_HOST
  std::memset(values, 0, size * sizeof(T));
#else
  check(op, cudaMemsetAsync(values, 0, size * sizeof(T), stream));
#endif
}

// Waits until the stream has written these numbers.
template <size_t size>
std::array<int64_t, size> read_back(
    [[maybe_unused]] const char* op, const int64_t* values, [[maybe_unused]] cudaStream_t stream) {
  std::array<int64_t, size> read;
#ifdef POTLOC_CUDA_HOST
  std::memcpy(read.data(), values, sizeof(read));
#else
  check(op, cudaMemcpyAsync(read.data(), values, sizeof(read), cudaMemcpyDeviceToHost, stream));
  check(op, cudaStreamSynchronize(stream));
#endif
  return read;
}

}  // namespace potloc::cuda
