// L_Act and L_BG on the fused probability P = sigmoid(x) sigmoid(-z), x a class's logit and z the background's:
//   log P = -softplus(-x) - softplus(z)
//   log Q = log(1 - P) = logsumexp(-x, z, z - x) - softplus(-x) - softplus(z)
// with the slopes
//   d log P = sigmoid(-x) dx - sigmoid(z) dz
//   d log Q = -(P / Q) d log P, where (P / Q) sigmoid(-x) = e^(log P - log Q - softplus(x)) <= 1, and likewise for z.

#include "cpu/fused_focal_loss.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>

#include "cpu/log_space.h"

namespace potloc::cpu::POTLOC_CAPABILITY {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// log P and log Q; `softplus_z` is shared by a row.
template <typename A>
struct Fused {
  A log_p, log_q;

  Fused(A x, A z, A softplus_z) {
    const A a = -x, b = z, c = z - x;
    const A highest = std::max(a, std::max(b, c));
    const A log_sum = highest + std::log(std::exp(a - highest) + std::exp(b - highest) + std::exp(c - highest));
    const A denominator = softplus(-x) + softplus_z;
    log_p = -denominator;
    log_q = log_sum - denominator;
  }
};

// -(1 - p)^gamma log p, given log p and log(1 - p).
template <typename A>
A focal(A log_p, A log_q, A gamma) {
  return -power(log_q, gamma) * log_p;
}

// d focal / d log p, for d log q = -(p / q) d log p. As q -> 0, log p -> -q, so log p / q has the limit -1.
template <typename A>
A focal_slope(A log_p, A log_q, A gamma) {
  if (gamma == 0) {
    return A(-1);
  }
  const A quotient = log_q < A(-15) ? A(-1) : log_p * std::exp(-log_q);
  return power(log_q, gamma) * (gamma * std::exp(log_p) * quotient - 1);
}

}  // namespace

template <typename T, typename A>
void fused_focal_loss_forward(
    const T* logits, const T* targets, const bool* positive, const bool* background, A* partial, A gamma, int64_t rows,
    int64_t classes, int64_t begin, int64_t end) {
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    A act = 0, bg = 0;
    const int64_t last = std::min(rows, (chunk + 1) * kFusedFocalChunk);
    for (int64_t n = chunk * kFusedFocalChunk; n < last; ++n) {
      if (!positive[n] && !background[n]) {
        continue;
      }
      const T* x = logits + n * (classes + 1);
      const A z = static_cast<A>(x[classes]), softplus_z = softplus(z);
      A act_row = 0, bg_row = 0;
      for (int64_t c = 0; c < classes; ++c) {
        const Fused<A> fused(static_cast<A>(x[c]), z, softplus_z);
        const A miss = focal(fused.log_q, fused.log_p, gamma);
        bg_row += miss;
        const A t = static_cast<A>(targets[n * classes + c]);
        act_row += (1 - t) * miss + (t == 0 ? A(0) : t * focal(fused.log_p, fused.log_q, gamma));
      }
      if (positive[n]) {
        act += act_row;
      }
      if (background[n]) {
        // (1 - b)^gamma log b with b = sigmoid(z)
        bg += bg_row + focal(-softplus(-z), -softplus_z, gamma);
      }
    }
    partial[2 * chunk] = act;
    partial[2 * chunk + 1] = bg;
  }
}

template <typename T, typename A>
void fused_focal_loss_backward(
    A act_factor, A bg_factor, const T* logits, const T* targets, const bool* positive, const bool* background,
    T* grad_logits, A gamma, int64_t rows, int64_t classes, int64_t begin, int64_t end) {
  const int64_t last = std::min(rows, end * kFusedFocalChunk);
  for (int64_t n = begin * kFusedFocalChunk; n < last; ++n) {
    const T* x = logits + n * (classes + 1);
    T* grad = grad_logits + n * (classes + 1);
    if (!positive[n] && !background[n]) {
      std::fill(grad, grad + classes + 1, static_cast<T>(0.0f));
      continue;
    }
    const A act = positive[n] ? act_factor : A(0), bg = background[n] ? bg_factor : A(0);
    const A z = static_cast<A>(x[classes]), softplus_z = softplus(z);
    A grad_z = 0;
    for (int64_t c = 0; c < classes; ++c) {
      const A xc = static_cast<A>(x[c]), t = static_cast<A>(targets[n * classes + c]);
      const Fused<A> fused(xc, z, softplus_z);
      // The loss is hit * focal(P) + miss * focal(Q).
      const A hit = act * t, miss = act * (1 - t) + bg;
      const A slope_p = hit == 0 ? A(0) : hit * focal_slope(fused.log_p, fused.log_q, gamma);
      const A slope_q = miss == 0 ? A(0) : miss * focal_slope(fused.log_q, fused.log_p, gamma);
      const A odds = fused.log_p - fused.log_q;
      grad[c] = static_cast<T>(slope_p * sigmoid(-xc) - slope_q * std::exp(odds - softplus(xc)));
      grad_z += slope_q * std::exp(odds - softplus(-z)) - slope_p * sigmoid(z);
    }
    if (background[n]) {
      // log b = -softplus(-z) has the slope sigmoid(-z).
      grad_z += bg * focal_slope(-softplus(-z), -softplus_z, gamma) * sigmoid(-z);
    }
    grad[classes] = static_cast<T>(grad_z);
  }
}

#define POTLOC_INSTANTIATE(T, A)                                                                \
  template void fused_focal_loss_forward<T, A>(                                                 \
      const T*, const T*, const bool*, const bool*, A*, A, int64_t, int64_t, int64_t, int64_t); \
  template void fused_focal_loss_backward<T, A>(                                                \
      A, A, const T*, const T*, const bool*, const bool*, T*, A, int64_t, int64_t, int64_t, int64_t);
POTLOC_INSTANTIATE(float, float)
POTLOC_INSTANTIATE(double, double)
POTLOC_INSTANTIATE(BFloat16, float)
POTLOC_INSTANTIATE(Half, float)

}  // namespace potloc::cpu::POTLOC_CAPABILITY
