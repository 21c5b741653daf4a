// Tensor cores for half types: matrix products of a warp with float32 accumulation, and the loads that feed them. The
// layouts are PTX's for mma.m16n8k16 and ldmatrix; with `row` = lane / 4 and `pair` = lane % 4 * 2, a lane holds
//   a, 16 x 16: 0: [row][pair, pair + 1], 1: [row + 8][the same], 2: [row][pair + 8, pair + 9], 3: [row + 8][the same]
//   b, 16 x 8:  0: [pair, pair + 1][row], 1: [pair + 8, pair + 9][row]
//   c, 16 x 8:  0, 1: [row][pair, pair + 1], 2, 3: [row + 8][the same]
// so what two neighbouring c hold is, rounded and packed, an a. Each function has a twin for the tests' harness.
#pragma once

#include <torch/headeronly/util/BFloat16.h>

#include <type_traits>

#include "cuda/platform.h"

namespace potloc::cuda {

// c += a * b.
template <typename T>
__device__ __forceinline__ void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#ifdef POTLOC_CUDA_HOST
  struct Operands {
    T a[4][2], b[2][2];
  } own;
  const uint32_t b[2] = {b0, b1};
  std::memcpy(own.a, a, sizeof(own.a));
  std::memcpy(own.b, b, sizeof(own.b));
  const cuda_host::Exchanged& all = cuda_host::exchange(kAllLanes, &own, sizeof(own));
  const auto operands = [&](unsigned lane) { return reinterpret_cast<const Operands*>(all.payload[lane]); };
  const unsigned row = cuda_host::lane() / 4, pair = cuda_host::lane() % 4 * 2;
  for (unsigned i = 0; i < 4; ++i) {
    for (unsigned k = 0; k < 16; ++k) {
      const unsigned source = k % 8 / 2;
      c[i] += static_cast<float>(operands(row * 4 + source)->a[i / 2 + k / 8 * 2][k % 2]) *
              static_cast<float>(operands((pair + i % 2) * 4 + source)->b[k / 8][k % 2]);
    }
  }
#else
  if constexpr (std::is_same_v<T, torch::headeronly::BFloat16>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
#endif
}

// Two numbers rounded to T, `low` at the lower address.
template <typename T>
__device__ __forceinline__ uint32_t pack(float low, float high) {
  uint32_t packed;
#ifdef POTLOC_CUDA_HOST
  const T both[2] = {static_cast<T>(low), static_cast<T>(high)};
  std::memcpy(&packed, both, sizeof(packed));
#else
  if constexpr (std::is_same_v<T, torch::headeronly::BFloat16>) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  }
#endif
  return packed;
}

// Loads four 8 x 8 matrices from shared memory; lane l names row l % 8, of 16 bytes, of matrix l / 8. Of each a lane
// gets [row][pair, pair + 1], or, transposed, [pair, pair + 1][row].
template <bool kTransposed, typename T>
__device__ __forceinline__ void load_matrices(uint32_t (&matrix)[4], const T* matrix_row) {
#ifdef POTLOC_CUDA_HOST
  const cuda_host::Exchanged& all = cuda_host::exchange(kAllLanes, &matrix_row, sizeof(matrix_row));
  const unsigned row = cuda_host::lane() / 4, pair = cuda_host::lane() % 4 * 2;
  for (unsigned m = 0; m < 4; ++m) {
    T both[2];
    for (unsigned i = 0; i < 2; ++i) {
      const T* source;
      std::memcpy(&source, all.payload[m * 8 + (kTransposed ? pair + i : row)], sizeof(source));
      both[i] = source[kTransposed ? row : pair + i];
    }
    std::memcpy(&matrix[m], both, sizeof(both));
  }
#else
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(matrix_row));
  if constexpr (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(matrix[0]), "=r"(matrix[1]), "=r"(matrix[2]), "=r"(matrix[3])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(matrix[0]), "=r"(matrix[1]), "=r"(matrix[2]), "=r"(matrix[3])
                 : "r"(address)
                 : "memory");
  }
#endif
}

// Begins a copy of 16 bytes from global to shared memory; zeros where they are not `present`.
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool present) {
#ifdef POTLOC_CUDA_HOST
  cuda_host::copy_later(shared, present ? global : nullptr, 16);
#else
  asm volatile(
      "cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
      "l"(global), "r"(present ? 16 : 0)
      : "memory");
#endif
}

// Waits for the copies that this thread has begun.
__device__ __forceinline__ void wait_for_copies() {
#ifdef POTLOC_CUDA_HOST
  cuda_host::finish_copies();
#else
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

}  // namespace potloc::cuda
