#pragma once

#include <cstdint>

#include "cuda/stream.h"

namespace potloc::cuda {

template <typename T>
struct SigmoidFocalLoss {
  const T *logits, *targets;
  int64_t size;
  double alpha, gamma;
};

// How many partial sums the forward pass writes.
template <typename T>
int64_t sigmoid_focal_loss_chunks(int64_t size);

// Each element's loss.
template <typename T, typename A>
void sigmoid_focal_loss_forward(const SigmoidFocalLoss<T>& call, T* loss, Stream stream);

// The sum of the losses, divided by `divisor`.
template <typename T, typename A>
void sigmoid_focal_loss_forward(const SigmoidFocalLoss<T>& call, A* partial, double divisor, T* loss, Stream stream);

// Multiplies by `factor` and the incoming gradient: one for each element, or a scalar, which lies on the device.
template <typename T, typename A>
void sigmoid_focal_loss_backward(
    const SigmoidFocalLoss<T>& call, const T* grad, bool scalar_grad, double factor, T* grad_logits, Stream stream);

}  // namespace potloc::cuda
