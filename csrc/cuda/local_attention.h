#pragma once

#include <cstdint>

#include "cuda/stream.h"

namespace potloc::cuda {

// Shape of one call.
struct LocalAttention {
  int64_t batches, heads, length, width, radius;
  double scale;
  const bool* key_mask;  // contiguous [B, T], or null where every key counts
};

// A [B, H, T, D] tensor to read. Strides are in elements; the last dimension is contiguous.
template <typename T>
struct Strided {
  const T* data;
  int64_t stride[3];  // batch, head, time
};

// `out` and the gradients are contiguous [B, H, T, D], `lse` and `delta` [B, H, T]. `delta` is temporary.
template <typename T, typename A>
void local_attention_forward(
    const LocalAttention& call, const Strided<T>& q, const Strided<T>& k, const Strided<T>& v, T* out, A* lse,
    Stream stream);
template <typename T, typename A>
void local_attention_backward(
    const LocalAttention& call, const Strided<T>& grad_out, const Strided<T>& q, const Strided<T>& k,
    const Strided<T>& v, const A* lse, A* delta, T* grad_q, T* grad_k, T* grad_v, Stream stream);

}  // namespace potloc::cuda
