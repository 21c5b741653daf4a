// Sigmoid focal loss, element by element: alpha_t (1 - p_t)^gamma BCE(p, t). With s = -log p and u = -log(1 - p), both
// softplus, BCE = t s + (1 - t) u; nothing overflows and nothing cancels for any finite logit.

#include "cpu/sigmoid_focal_loss.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>

#include "cpu/log_space.h"

namespace potloc::cpu::POTLOC_CAPABILITY {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

template <typename A>
A balance(A alpha, A target) {
  return alpha >= 0 ? alpha * target + (1 - alpha) * (1 - target) : A(1);
}

// log(1 - p_t); for a target of 0 or 1 straight from the logit.
template <typename A>
A log_miss(A x, A target) {
  if (target == 1) {
    return -softplus(x);
  }
  if (target == 0) {
    return -softplus(-x);
  }
  return std::log(target * sigmoid(-x) + (1 - target) * sigmoid(x));
}

}  // namespace

template <typename T, typename A>
void sigmoid_focal_loss_forward(
    const T* logits, const T* targets, T* loss, A* partial, A alpha, A gamma, int64_t size, int64_t begin,
    int64_t end) {
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    A sum = 0;
    const int64_t last = std::min(size, (chunk + 1) * kFocalChunk);
    for (int64_t i = chunk * kFocalChunk; i < last; ++i) {
      const A x = static_cast<A>(logits[i]), t = static_cast<A>(targets[i]);
      const A entropy = t * softplus(-x) + (1 - t) * softplus(x);
      const A value = balance(alpha, t) * power(log_miss(x, t), gamma) * entropy;
      if (loss != nullptr) {
        loss[i] = static_cast<T>(value);
      } else {
        sum += value;
      }
    }
    if (loss == nullptr) {
      partial[chunk] = sum;
    }
  }
}

template <typename T, typename A>
void sigmoid_focal_loss_backward(
    const T* grad, int64_t grad_stride, A factor, const T* logits, const T* targets, T* grad_logits, A alpha, A gamma,
    int64_t size, int64_t begin, int64_t end) {
  for (int64_t i = begin * kFocalChunk; i < std::min(size, end * kFocalChunk); ++i) {
    const A x = static_cast<A>(logits[i]), t = static_cast<A>(targets[i]);
    const A p = sigmoid(x), q = sigmoid(-x), log_m = log_miss(x, t);
    const A entropy = t * softplus(-x) + (1 - t) * softplus(x);
    // d(entropy)/dx = p - t, written without cancellation; d(1 - p_t)/dx = (1 - 2t) p q.
    const A entropy_slope = (1 - t) * p - t * q;
    A slope = power(log_m, gamma) * entropy_slope;
    if (gamma != 0) {
      // The quotient p q / (1 - p_t) stays in [0, 1] for hard targets: q at t = 0, p at t = 1.
      const A quotient = t == 0 ? q : t == 1 ? p : p * q * std::exp(-log_m);
      slope += gamma * std::exp(gamma * log_m) * (1 - 2 * t) * quotient * entropy;
    }
    grad_logits[i] = static_cast<T>(static_cast<A>(grad[i * grad_stride]) * factor * balance(alpha, t) * slope);
  }
}

#define POTLOC_INSTANTIATE(T, A)                                                                               \
  template void sigmoid_focal_loss_forward<T, A>(const T*, const T*, T*, A*, A, A, int64_t, int64_t, int64_t); \
  template void sigmoid_focal_loss_backward<T, A>(                                                             \
      const T*, int64_t, A, const T*, const T*, T*, A, A, int64_t, int64_t, int64_t);
POTLOC_INSTANTIATE(float, float)
POTLOC_INSTANTIATE(double, double)
POTLOC_INSTANTIATE(BFloat16, float)
POTLOC_INSTANTIATE(Half, float)

}  // namespace potloc::cpu::POTLOC_CAPABILITY
