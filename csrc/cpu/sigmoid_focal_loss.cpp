// Sigmoid focal loss, element by element: alpha_t m^gamma BCE(p, t) with p = sigmoid(x), q = 1 - p and m = 1 - p_t =
// t q + (1 - t) p. With a = e^-|x|, p and q are 1 / (1 + a) and a / (1 + a), and
//   BCE = t max(-x, 0) + (1 - t) max(x, 0) + log(1 + a):
// nothing overflows and nothing cancels for any finite logit. A tile of elements is converted to the type that is
// computed in and filled up, so that every loop consists of whole vectors.

#include "cpu/sigmoid_focal_loss.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "cpu/convert.h"
#include "cpu/log_space.h"

namespace potloc::cpu::POTLOC_CAPABILITY {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

constexpr int64_t kTile = 512, kLanes = 16;
static_assert(kFocalChunk % kTile == 0);

template <typename A>
using Tile = std::array<A, kTile>;

// Copies up to a tile and fills the last vector up with zeros.
template <typename T, typename A>
void load(const T* from, int64_t size, Tile<A>& tile) {
  convert(from, tile.data(), size);
  std::fill(tile.begin() + size, tile.begin() + (size + kLanes - 1) / kLanes * kLanes, A(0));
}

template <typename A>
struct Balance {
  A hit, miss;

  explicit Balance(A alpha) : hit(alpha < 0 ? A(1) : alpha), miss(alpha < 0 ? A(1) : 1 - alpha) {
  }

  A operator()(A target) const {
    return hit * target + miss * (1 - target);
  }
};

// `m` is what p_t lacks to 1.
template <typename A>
struct Element {
  A p, q, m, entropy;

  Element(A x, A t) {
    const A a = exp(-std::abs(x)), inverse = 1 / (1 + a);
    p = (x >= 0 ? A(1) : a) * inverse;
    q = (x >= 0 ? a : A(1)) * inverse;
    m = t * q + (1 - t) * p;
    entropy = t * std::max(-x, A(0)) + (1 - t) * std::max(x, A(0)) + log1p(a);
  }

  // m where its logarithm and inverse exist; below, the entropy is 0.
  A normal_m() const {
    constexpr A least = std::numeric_limits<A>::min();
    return m < least ? least : m;
  }
};

template <bool kSquare, typename A>
void losses(const Tile<A>& logit, const Tile<A>& target, Tile<A>& loss, Balance<A> balance, A gamma, int64_t vectors) {
#pragma omp simd
  for (int64_t i = 0; i < vectors * kLanes; ++i) {
    const Element<A> e(logit[i], target[i]);
    const A power = kSquare ? e.m * e.m : exp(gamma * log(e.normal_m()));
    loss[i] = balance(target[i]) * power * e.entropy;
  }
}

template <bool kSquare, typename A>
void slopes(const Tile<A>& logit, const Tile<A>& target, Tile<A>& slope, Balance<A> balance, A gamma, int64_t vectors) {
#pragma omp simd
  for (int64_t i = 0; i < vectors * kLanes; ++i) {
    const A t = target[i];
    const Element<A> e(logit[i], t);
    // The slope of the entropy is p - t, written without cancellation; that of m is (1 - 2t) p q.
    const A entropy_slope = (1 - t) * e.p - t * e.q;
    const A weight = gamma * (1 - 2 * t);
    // The entropy meets p q first: gamma times it may be infinite, where p q is 0.
    if constexpr (kSquare) {
      slope[i] = balance(t) * e.m * (e.m * entropy_slope + weight * (e.entropy * e.p * e.q));
    } else {
      // The quotient first: all three of p q, m and the entropy may be so small that their product is 0.
      const A quotient = e.p * e.q / e.normal_m();
      slope[i] = balance(t) * exp(gamma * log(e.normal_m())) * (entropy_slope + weight * (e.entropy * quotient));
    }
  }
}

}  // namespace

template <typename T, typename A>
void sigmoid_focal_loss_forward(
    const T* logits, const T* targets, T* loss, A* partial, A alpha, A gamma, int64_t size, int64_t begin,
    int64_t end) {
  Tile<A> logit, target, value;
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    A sum = 0;
    const int64_t last = std::min(size, (chunk + 1) * kFocalChunk);
    for (int64_t first = chunk * kFocalChunk; first < last; first += kTile) {
      const int64_t count = std::min(kTile, last - first), vectors = (count + kLanes - 1) / kLanes;
      load(logits + first, count, logit);
      load(targets + first, count, target);
      (gamma == 2 ? losses<true, A> : losses<false, A>)(logit, target, value, Balance(alpha), gamma, vectors);
      if (loss != nullptr) {
        convert(value.data(), loss + first, count);
      } else {
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < count; ++i) {
          sum += value[i];
        }
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
  Tile<A> logit, target, incoming, value;
  if (grad_stride == 0) {
    incoming.fill(static_cast<A>(*grad));
  }
  const int64_t last = std::min(size, end * kFocalChunk);
  for (int64_t first = begin * kFocalChunk; first < last; first += kTile) {
    const int64_t count = std::min(kTile, last - first), vectors = (count + kLanes - 1) / kLanes;
    load(logits + first, count, logit);
    load(targets + first, count, target);
    (gamma == 2 ? slopes<true, A> : slopes<false, A>)(logit, target, value, Balance(alpha), gamma, vectors);
    if (grad_stride != 0) {
      convert(grad + first, incoming.data(), count);
    }
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
      value[i] *= incoming[i] * factor;
    }
    convert(value.data(), grad_logits + first, count);
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
