// L_Act and L_BG on the fused probability P = sigmoid(x) sigmoid(-z), x a class's logit and z the background's.
//
// With a = e^-|x| and b = e^-|z|, 1 + w = (1 + a)(1 + b), and sigmoid(x) = n / (1 + a), sigmoid(-x) = o / (1 + a) where
// n and o are 1 and a, or a and 1; likewise sigmoid(z) = nz / (1 + b), sigmoid(-z) = oz / (1 + b):
//   P = n oz / (1 + w), Q = 1 - P = (n nz + o (1 + b)) / (1 + w), both sums of what is positive;
//   log P = min(x, 0) - max(z, 0) - log(1 + w), log Q = log(1 - P) up to P = 1/2.
// Beyond, Q may underflow: x > 0 > z, and the numerator of Q, a + b + a b, is formed over e^m, m = max(-x, z).
//
// Rows that take part are copied side by side, 16 at a time, each element with what belongs to its row: loops over the
// elements then consist of whole vectors for any number of classes.

#include "cpu/fused_focal_loss.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "cpu/convert.h"
#include "cpu/log_space.h"

namespace potloc::cpu::POTLOC_CAPABILITY {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

constexpr int64_t kRows = 16;

// p^gamma
template <bool kSquare, typename A>
inline A power(A p, A log_p, A gamma) {
  return kSquare ? p * p : exp(gamma * log_p);
}

template <typename A>
struct Fused {
  A p, q, log_p, log_q;
  A slope_x, slope_z;  // d log P / dx = sigmoid(-x), -d log P / dz = sigmoid(z)
  A odds_x, odds_z;    // P / Q times these, at most 1

  [[gnu::always_inline]] Fused(A x, A z, A b) {
    const A a = exp(-std::abs(x)), e = exp(-std::abs(x + z));
    const A n = x >= 0 ? A(1) : a, o = x >= 0 ? a : A(1);
    const A nz = z >= 0 ? A(1) : b, oz = z >= 0 ? b : A(1);
    const A w = a + b * (1 + a), inverse = 1 / (1 + w);
    const A numerator = n * nz + o * (1 + b);
    p = n * oz * inverse;
    q = numerator * inverse;
    // Both logits may be so large that their sum is infinite.
    log_p = std::max(std::min(x, A(0)) - std::max(z, A(0)) - log1p(w), std::numeric_limits<A>::lowest());
    const bool sure = p > A(0.5), x_leads = x + z <= 0;
    const A scaled = sure ? 1 + e + std::min(a, b) : numerator;
    const A u = sure ? scaled * inverse : 1 - p;
    log_q = (sure ? std::max(-x, z) : A(0)) + log(u, sure ? A(0) : (1 - u) - p);
    slope_x = o * (1 + b) * inverse;
    slope_z = nz * (1 + a) * inverse;
    const A ratio = p / scaled;
    odds_x = ratio * (1 + b) * (!sure ? o : x_leads ? A(1) : e);
    odds_z = ratio * (1 + a) * (!sure ? nz : x_leads ? e : A(1));
  }
};

// The background's own probability B = sigmoid(z).
template <typename A>
struct Background {
  A p, q, log_p, log_q;

  Background(A z, A b) {
    const A inverse = 1 / (1 + b), l = log1p(b);
    p = (z >= 0 ? A(1) : b) * inverse;
    q = (z >= 0 ? b : A(1)) * inverse;
    log_p = std::min(z, A(0)) - l;
    log_q = std::min(-z, A(0)) - l;
  }
};

// What belongs to an element of a block, [16 * C] each.
template <typename A>
struct Elements {
  A *x, *target, *z, *b, *act, *bg, *grad_x, *grad_z;
};

// Rows side by side.
template <typename A>
struct Block {
  int64_t classes;
  int64_t count = 0;
  std::array<int64_t, kRows> row;
  std::array<A, kRows> z, b, act, bg, grad_own;
  std::vector<A> memory;
  Elements<A> each;

  explicit Block(int64_t classes) : classes(classes), memory(8 * kRows * classes) {
    const auto part = [&](int64_t i) { return memory.data() + i * kRows * classes; };
    each = {part(0), part(1), part(2), part(3), part(4), part(5), part(6), part(7)};
  }

  template <typename T>
  void add(const T* logits, const T* targets, int64_t n, A act_weight, A bg_weight) {
    convert(logits + n * (classes + 1), each.x + count * classes, classes);
    convert(targets + n * classes, each.target + count * classes, classes);
    row[count] = n;
    z[count] = static_cast<A>(logits[n * (classes + 1) + classes]);
    act[count] = act_weight;
    bg[count] = bg_weight;
    ++count;
  }

  // Fills up with rows that weigh nothing.
  void close() {
    for (int64_t r = count; r < kRows; ++r) {
      z[r] = act[r] = bg[r] = 0;
    }
    std::fill(each.x + count * classes, each.x + kRows * classes, A(0));
    std::fill(each.target + count * classes, each.target + kRows * classes, A(0));
#pragma omp simd
    for (int64_t r = 0; r < kRows; ++r) {
      b[r] = exp(-std::abs(z[r]));
    }
    for (int64_t r = 0; r < kRows; ++r) {
      const int64_t first = r * classes;
      std::fill_n(each.z + first, classes, z[r]);
      std::fill_n(each.b + first, classes, b[r]);
      std::fill_n(each.act + first, classes, act[r]);
      std::fill_n(each.bg + first, classes, bg[r]);
    }
  }
};

// Calls `f(block)` for the rows [first, last) that take part, 16 at a time.
template <typename T, typename A, typename F>
void for_each_block(
    Block<A>& block, const T* logits, const T* targets, const bool* positive, const bool* background, A act, A bg,
    int64_t first, int64_t last, F&& f) {
  const auto flush = [&] {
    block.close();
    f();
    block.count = 0;
  };
  for (int64_t n = first; n < last; ++n) {
    if (positive[n] || background[n]) {
      block.add(logits, targets, n, positive[n] ? act : A(0), background[n] ? bg : A(0));
      if (block.count == kRows) {
        flush();
      }
    }
  }
  if (block.count > 0) {
    flush();
  }
}

template <bool kSquare, typename A>
void add_losses(const Block<A>& block, A gamma, A& act_sum, A& bg_sum) {
  const Elements<A> e = block.each;  // a copy: the loop vectorises if it need not reload the pointers
  A act = 0, bg = 0;
#pragma omp simd reduction(+ : act, bg)
  for (int64_t i = 0; i < kRows * block.classes; ++i) {
    const Fused<A> f(e.x[i], e.z[i], e.b[i]);
    const A t = e.target[i];
    const A miss = -power<kSquare>(f.p, f.log_p, gamma) * f.log_q;
    const A hit = -power<kSquare>(f.q, f.log_q, gamma) * f.log_p;
    act += e.act[i] == 0 ? A(0) : (1 - t) * miss + (t == 0 ? A(0) : t * hit);
    bg += e.bg[i] == 0 ? A(0) : miss;
  }
#pragma omp simd reduction(+ : bg)
  for (int64_t r = 0; r < kRows; ++r) {
    const Background<A> f(block.z[r], block.b[r]);
    bg -= block.bg[r] == 0 ? A(0) : power<kSquare>(f.q, f.log_q, gamma) * f.log_p;
  }
  act_sum += act;
  bg_sum += bg;
}

// Gradients of the classes' logits, and what each takes from that of the background's. The loss is hit * focal(P) +
// miss * focal(Q) with focal(p) = -(1 - p)^gamma log p.
template <bool kSquare, typename A>
void find_gradients(Block<A>& block, A gamma) {
  const Elements<A> e = block.each;
#pragma omp simd
  for (int64_t i = 0; i < kRows * block.classes; ++i) {
    const Fused<A> f(e.x[i], e.z[i], e.b[i]);
    const A t = e.target[i];
    const A hit = e.act[i] * t, miss = e.act[i] * (1 - t) + e.bg[i];
    // d focal(P) / d log P; as Q -> 0, log P -> -Q.
    A slope;
    if constexpr (kSquare) {
      slope = f.q * (2 * f.p * f.log_p - f.q);
    } else {
      // Q may be rounded to a little less than 1.
      const A quotient =
          f.q < std::numeric_limits<A>::min() ? A(-1) : std::max(f.log_p / f.q, std::numeric_limits<A>::lowest());
      slope = power<kSquare>(f.q, f.log_q, gamma) * (gamma * f.p * quotient - 1);
    }
    // d focal(Q) = -P^gamma (gamma log Q - P / Q) d log P
    const A weight = miss == 0 ? A(0) : miss * power<kSquare>(f.p, f.log_p, gamma);
    // log Q meets the slopes first: gamma times it may be infinite, where they are 0.
    const A common = hit == 0 ? A(0) : hit * slope;
    e.grad_x[i] = common * f.slope_x + weight * (f.odds_x - gamma * (f.log_q * f.slope_x));
    e.grad_z[i] = common * f.slope_z + weight * (f.odds_z - gamma * (f.log_q * f.slope_z));
  }
#pragma omp simd
  for (int64_t r = 0; r < kRows; ++r) {
    const Background<A> f(block.z[r], block.b[r]);
    const A slope = power<kSquare>(f.q, f.log_q, gamma) * (gamma * f.p * f.log_p - f.q);
    block.grad_own[r] = block.bg[r] == 0 ? A(0) : block.bg[r] * slope;
  }
}

template <typename T, typename A>
void write_gradients(const Block<A>& block, T* grad_logits) {
  for (int64_t r = 0; r < block.count; ++r) {
    T* grad = grad_logits + block.row[r] * (block.classes + 1);
    const A* grad_z = block.each.grad_z + r * block.classes;
    A sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t c = 0; c < block.classes; ++c) {
      sum += grad_z[c];
    }
    convert(block.each.grad_x + r * block.classes, grad, block.classes);
    grad[block.classes] = static_cast<T>(block.grad_own[r] - sum);
  }
}

}  // namespace

template <typename T, typename A>
void fused_focal_loss_forward(
    const T* logits, const T* targets, const bool* positive, const bool* background, A* partial, A gamma, int64_t rows,
    int64_t classes, int64_t begin, int64_t end) {
  Block<A> block(classes);
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    A act = 0, bg = 0;
    for_each_block(
        block, logits, targets, positive, background, A(1), A(1), chunk * kFusedFocalChunk,
        std::min(rows, (chunk + 1) * kFusedFocalChunk),
        [&] { gamma == 2 ? add_losses<true>(block, gamma, act, bg) : add_losses<false>(block, gamma, act, bg); });
    partial[2 * chunk] = act;
    partial[2 * chunk + 1] = bg;
  }
}

template <typename T, typename A>
void fused_focal_loss_backward(
    A act_factor, A bg_factor, const T* logits, const T* targets, const bool* positive, const bool* background,
    T* grad_logits, A gamma, int64_t rows, int64_t classes, int64_t begin, int64_t end) {
  const int64_t first = begin * kFusedFocalChunk, last = std::min(rows, end * kFusedFocalChunk);
  for (int64_t n = first; n < last; ++n) {
    if (!positive[n] && !background[n]) {
      std::fill_n(grad_logits + n * (classes + 1), classes + 1, static_cast<T>(0.0f));
    }
  }
  Block<A> block(classes);
  for_each_block(block, logits, targets, positive, background, act_factor, bg_factor, first, last, [&] {
    gamma == 2 ? find_gradients<true>(block, gamma) : find_gradients<false>(block, gamma);
    write_gradients(block, grad_logits);
  });
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
