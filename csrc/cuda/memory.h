// Zeroed memory, and the way back to the host: for results whose size must be known before they can be written.
#pragma once

#include <array>

#include "cuda/platform.h"

namespace potloc::cuda {

template <typename T>
void set_zero(const char* op, T* values, int64_t size, cudaStream_t stream) {
  check(op, cudaMemsetAsync(values, 0, size * sizeof(T), stream));
}

// Waits until the stream has written these numbers.
template <size_t size>
std::array<int64_t, size> read_back(const char* op, const int64_t* values, cudaStream_t stream) {
  std::array<int64_t, size> read;
  check(op, cudaMemcpyAsync(read.data(), values, sizeof(read), cudaMemcpyDeviceToHost, stream));
  check(op, cudaStreamSynchronize(stream));
  return read;
}

}  // namespace potloc::cuda
