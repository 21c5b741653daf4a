#pragma once

#include <cstdint>

#include "cpu/capability.h"

namespace potloc::cpu {

// As many filters as a GPU's registers hold.
inline constexpr int64_t kMostFilters = 3;

// Rows of time that are one task: partial sums do not depend on the number of threads.
inline constexpr int64_t kDepthwiseBlock = 128;

// One call: `filters` filters of width 3, of C channels each, on the same x [B, length, C]; outputs are
// ceil(length / stride) long. All tensors are contiguous.
struct DepthwiseConv {
  int64_t length, channels, filters, stride;
  const bool* mask;  // [B, length], or null where every snippet is real

  int64_t out_length() const {
    return (length + stride - 1) / stride;
  }
};

// Blocks [begin, end) of kDepthwiseBlock rows of the output (forward) or of x (backward), recording after recording.
// `weight` is [filters, 3, C]. `partial` [blocks, filters, 3, C] takes each block's share of the weight's gradient.
POTLOC_FOR_EACH_CAPABILITY(
    template <typename T, typename A> void depthwise_conv_forward(
        const DepthwiseConv& call, const T* x, const A* weight, T* const* out, int64_t begin, int64_t end);
    template <typename T, typename A> void depthwise_conv_backward(
        const DepthwiseConv& call, const T* const* grad, const T* x, const A* weight, T* grad_x, A* partial,
        int64_t begin, int64_t end);)

}  // namespace potloc::cpu
