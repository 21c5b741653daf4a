#pragma once

#include <cstdint>

#include "common/strided.h"
#include "cpu/capability.h"

namespace potloc::cpu {

// Shape of one call.
struct LocalAttention {
  int64_t heads, length, width, radius, block;
  double scale;
  const bool* key_mask;  // [B, T], or null where every key counts
  int64_t mask_stride;
};

// Tasks [begin, end) out of B * H * ceil(T / block); a task handles a block of queries and, going backward, of keys.
// `lse` is contiguous [B, H, T].
POTLOC_FOR_EACH_CAPABILITY(
    template <typename T, typename A> void local_attention_forward(
        const LocalAttention& shape, const Strided<const T>& q, const Strided<const T>& k, const Strided<const T>& v,
        const Strided<T>& out, A* lse, int64_t begin, int64_t end);
    template <typename T, typename A> void local_attention_backward(
        const LocalAttention& shape, const Strided<const T>& grad_out, const Strided<const T>& q,
        const Strided<const T>& k, const Strided<const T>& v, const A* lse, const Strided<T>& grad_q,
        const Strided<T>& grad_k, const Strided<T>& grad_v, int64_t begin, int64_t end);)

}  // namespace potloc::cpu
