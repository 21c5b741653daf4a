#pragma once

#include <cstdint>

#include "cuda/stream.h"
#include "cuda/workspace.h"

namespace potloc::cuda {

constexpr int kMostFilters = 3;

// One call: `filters` filters of width 3 on the same x [batch, length, channels]; outputs are out_length long.
struct DepthwiseConv {
  int64_t batch, length, out_length, channels, filters, stride;
  const bool* mask;  // [batch, length], or null where every snippet is real
};

template <typename T, typename A>
void depthwise_conv_forward(const DepthwiseConv& call, const T* x, const A* weight, T* const* out, Stream stream);

template <typename T, typename A>
void depthwise_conv_backward(
    const DepthwiseConv& call, const T* const* grad, const T* x, const A* weight, T* grad_x, A* grad_weight,
    const Workspace& workspace, Stream stream);

}  // namespace potloc::cuda
