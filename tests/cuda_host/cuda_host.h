// CUDA kernels on the host, to test them without a GPU. Blocks run one after the other; a CUDA thread is a fiber that
// runs until it meets a barrier or a warp-wide operation. Which thread goes on next is drawn from a seed, so what only
// works in one order fails for some seed. Shared memory is filled with NaN before a block starts and ends where an
// inaccessible page begins, as guarded tensors do: what is read too early or beyond the end does not go unnoticed.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__

// CUDA has these two in the global namespace.
using std::max;
using std::min;

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {
  }
};
using uint3 = dim3;
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
using cudaStream_t = void*;

// CUDA's runtime, as far as it is called. Like CUDA's, it keeps the last error until somebody takes it.
enum cudaError_t { cudaSuccess, cudaErrorInvalidValue, cudaErrorInvalidConfiguration };
enum cudaMemcpyKind { cudaMemcpyDeviceToHost };
inline cudaError_t last_error = cudaSuccess;
inline cudaError_t cudaGetLastError() {
  return std::exchange(last_error, cudaSuccess);
}
inline cudaError_t cudaPeekAtLastError() {
  return last_error;
}
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorInvalidValue ? "invalid argument" : "invalid configuration argument";
}

namespace cuda_host {

// Which call of the runtime fails, counted from the next one, which is 1; none where it is 0.
inline int64_t failing_call = 0;

inline cudaError_t call() {
  return failing_call > 0 && --failing_call == 0 ? last_error = cudaErrorInvalidValue : cudaSuccess;
}

// As CUB does, which launches and then looks at the last error, whoever made it.
inline cudaError_t call_cub() {
  call();
  return cudaPeekAtLastError();
}

}  // namespace cuda_host

inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  const cudaError_t error = cuda_host::call();
  if (error == cudaSuccess) {
    std::memset(to, value, bytes);
  }
  return error;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  const cudaError_t error = cuda_host::call();
  if (error == cudaSuccess) {
    std::memcpy(to, from, bytes);
  }
  return error;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) {
  return cuda_host::call();
}

// Those of the thread that runs at present.
inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_host {

constexpr unsigned kWarp = 32;
constexpr size_t kPayload = 64;

// From now on threads run in an order drawn from this seed.
void set_seed(uint64_t seed);

// Runs a grid, or says that there is none to run. Throws std::runtime_error where a thread touches an inaccessible
// page, or waits for ever.
cudaError_t launch(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& thread);

// The shared memory of the block that runs.
void* shared_memory();

// Waits until all threads of the block that have not ended are here.
void barrier();

// Waits until the lanes of `mask` are here, and gives this thread what each of them brought.
struct Exchanged {
  alignas(16) unsigned char payload[kWarp][kPayload];
};
const Exchanged& exchange(unsigned mask, const void* payload, size_t size);

// Memory that begins at a multiple of 16 and is followed, after less than 16 bytes, by an inaccessible page.
void* guarded(size_t bytes);

// Gives all of it back; whatever lies there must not be used any more.
void release();

// A copy to shared memory that is not there before the thread waits for it; of zeros where `from` is null.
void copy_later(void* to, const void* from, size_t bytes);
void finish_copies();

inline unsigned lane() {
  return (threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % kWarp;
}

template <typename T>
T from_lane(unsigned mask, T value, unsigned source) {
  static_assert(sizeof(T) <= kPayload);
  T result;
  std::memcpy(&result, exchange(mask, &value, sizeof(T)).payload[source], sizeof(T));
  return result;
}

}  // namespace cuda_host

inline void __syncthreads() {
  cuda_host::barrier();
}
inline void __syncwarp(unsigned mask = 0xffffffffu) {
  cuda_host::exchange(mask, nullptr, 0);
}
template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const int lane = static_cast<int>(cuda_host::lane());
  return cuda_host::from_lane(mask, value, lane / width * width + source % width);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
  const int lane = static_cast<int>(cuda_host::lane()), source = lane ^ bits;
  return cuda_host::from_lane(mask, value, source / width == lane / width ? source : lane);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int lane = static_cast<int>(cuda_host::lane()), source = lane + static_cast<int>(delta);
  return cuda_host::from_lane(mask, value, source / width == lane / width ? source : lane);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int lane = static_cast<int>(cuda_host::lane()), source = lane - static_cast<int>(delta);
  return cuda_host::from_lane(mask, value, source >= lane / width * width ? source : lane);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  const cuda_host::Exchanged& all = cuda_host::exchange(mask, &predicate, sizeof(int));
  unsigned result = 0;
  for (unsigned lane = 0; lane < cuda_host::kWarp; ++lane) {
    int value = 0;
    std::memcpy(&value, all.payload[lane], sizeof(int));
    result |= (mask >> lane & 1) && value ? 1u << lane : 0u;
  }
  return result;
}
inline int __any_sync(unsigned mask, int predicate) {
  return __ballot_sync(mask, predicate) != 0;
}
inline int __all_sync(unsigned mask, int predicate) {
  return __ballot_sync(mask, predicate) == mask;
}
inline unsigned __reduce_max_sync(unsigned mask, unsigned value) {
  const cuda_host::Exchanged& all = cuda_host::exchange(mask, &value, sizeof(value));
  for (unsigned lane = 0; lane < cuda_host::kWarp; ++lane) {
    unsigned other = 0;
    std::memcpy(&other, all.payload[lane], sizeof(other));
    value = mask >> lane & 1 ? std::max(value, other) : value;
  }
  return value;
}
inline unsigned __reduce_min_sync(unsigned mask, unsigned value) {
  return ~__reduce_max_sync(mask, ~value);
}
inline int __popc(unsigned x) {
  return __builtin_popcount(x);
}
inline int __ffs(int x) {
  return __builtin_ffs(x);
}
inline int __clz(int x) {
  return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x));
}
template <typename T>
T __ldg(const T* pointer) {
  return *pointer;
}
template <typename T>
T atomicAdd(T* target, T value) {
  return std::exchange(*target, *target + value);
}
template <typename T>
T atomicMax(T* target, T value) {
  return std::exchange(*target, std::max(*target, value));
}
template <typename T>
T atomicOr(T* target, T value) {
  return std::exchange(*target, *target | value);
}
template <typename T>
T atomicMin(T* target, T value) {
  return std::exchange(*target, std::min(*target, value));
}
inline void __pipeline_memcpy_async(void* to, const void* from, size_t bytes) {
  cuda_host::copy_later(to, from, bytes);
}
inline void __pipeline_commit() {
}
// Only for all copies, an argument of 0.
inline void __pipeline_wait_prior(size_t) {
  cuda_host::finish_copies();
}
