#pragma once

#include <cstdint>

#include "cpu/capability.h"

namespace potloc::cpu {

// Shape of one call. Strides are in elements; the last dimension of every tensor is contiguous.
struct LocalAttention {
  int64_t heads, length, width, radius, block;
  double scale;
  int64_t q_stride[3], k_stride[3], v_stride[3];  // batch, head, time
  const bool* key_mask;                           // [B, T], or null where every key counts
  int64_t mask_stride;
};

// Tasks [begin, end) out of B * H * ceil(T / block); a task handles a block of queries and, going backward, of keys.
// `out` and the gradients are contiguous [B, H, T, D].
POTLOC_FOR_EACH_CAPABILITY(
    template <typename T, typename A> void local_attention_forward(
        const LocalAttention& shape, const T* q, const T* k, const T* v, T* out, A* lse, int64_t begin, int64_t end);
    template <typename T, typename A> void local_attention_backward(
        const LocalAttention& shape, const T* grad_out, const T* q, const T* k, const T* v, const A* lse, T* grad_q,
        T* grad_k, T* grad_v, int64_t begin, int64_t end);)

}  // namespace potloc::cpu
