#pragma once

#include <cstdint>

#include "cuda/stream.h"

namespace potloc::cuda {

// What both passes read: logits [N, C + 1], targets [N, C], positive and background [N].
template <typename T>
struct FusedFocalLoss {
  const T *logits, *targets;
  const bool *positive, *background;
  int64_t rows, classes;
  double gamma;
};

// The sums over a tile of rows: both losses, and the rows that take part in each.
template <typename A>
struct alignas(16) FusedFocalPartial {
  A loss[2], count[2];
};

// How many partial sums the forward pass writes.
template <typename T>
int64_t fused_focal_loss_tiles(int64_t rows, int64_t classes);

template <typename T, typename A>
void fused_focal_loss_forward(
    const FusedFocalLoss<T>& call, FusedFocalPartial<A>* partial, T* loss_act, T* loss_bg, int64_t* counts,
    Stream stream);

template <typename T, typename A>
void fused_focal_loss_backward(
    const FusedFocalLoss<T>& call, const T* grad_act, const T* grad_bg, const int64_t* counts, T* grad_logits,
    Stream stream);

}  // namespace potloc::cuda
