#pragma once

#include <cstdint>

#include "common/strided.h"
#include "cuda/stream.h"

namespace potloc::cuda {

// Shape of one call.
struct LocalAttention {
  int64_t batches, heads, length, width, radius;
  double scale;
  const bool* key_mask;  // contiguous [B, T], or null where every key counts
};

// `lse` and `delta` are contiguous [B, H, T]. `delta` is temporary.
template <typename T, typename A>
void local_attention_forward(
    const LocalAttention& call, const Strided<const T>& q, const Strided<const T>& k, const Strided<const T>& v,
    const Strided<T>& out, A* lse, Stream stream);
template <typename T, typename A>
void local_attention_backward(
    const LocalAttention& call, const Strided<const T>& grad_out, const Strided<const T>& q, const Strided<const T>& k,
    const Strided<const T>& v, const A* lse, A* delta, const Strided<T>& grad_q, const Strided<T>& grad_k,
    const Strided<T>& grad_v, Stream stream);

}  // namespace potloc::cuda
