// Segments over thresholds of linearly upsampled curves, and their outer-inner contrast. The upsampled row is never
// formed: between two neighbouring values the curve is monotone, so it crosses just the thresholds that lie between
// them. A row is walked once: the rank of each value (how many thresholds it exceeds) says where to look, and each
// crossing, found by inversion of the line, is put down in the list of its threshold, with the sum over all points
// before it. Sums over segments are then differences; the cost is that of the values plus that of the crossings.
// Built with floating-point contraction off, so that every instruction set decides the same.

#include "cpu/score_segments.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

namespace potloc::cpu::POTLOC_CAPABILITY {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// One row as sampled: the first `head` points hold the first value, then `cell` points lie between each value and the
// next, and the rest hold the last value.
template <typename A>
class Curve {
 public:
  int64_t size = 0, points = 0;

  Curve(int64_t stride, int64_t upsample)
      : stride_(stride),
        upsample_(upsample),
        head_(upsample / 2),
        cell_(stride * upsample),
        half_step_(upsample % 2 == 0),
        denominator_(2.0 * stride * upsample) {
  }

  template <typename T>
  void load(const T* values, int64_t length) {
    size = (length + stride_ - 1) / stride_;
    points = length * upsample_;
    values_.assign(values, values + size);
  }

  void sum_up() {
    before_.resize(size);
    double total = size == 0 ? 0 : sum_equal(values_[0], head_);
    for (int64_t j = 0; j < size; ++j) {
      before_[j] = total;
      total += sum_in_cell(j, cell_);
    }
  }

  // How many of the thresholds each value exceeds.
  void rank(const std::vector<A>& thresholds, std::vector<int32_t>& ranks) const {
    constexpr int64_t kTogether = 64;
    ranks.resize(size);
    for (int64_t j = 0; j < size; j += kTogether) {
      const int64_t n = std::min(kTogether, size - j);
      A value[kTogether] = {};
      std::copy_n(values_.data() + j, n, value);
      int32_t over[kTogether] = {};
      for (const A threshold : thresholds) {
        for (int64_t i = 0; i < kTogether; ++i) {
          over[i] += value[i] > threshold;
        }
      }
      std::copy_n(over, n, ranks.data() + j);
    }
  }

  int64_t cell_begin(int64_t j) const {
    return head_ + j * cell_;
  }

  // How many points of the cell from value j to value j + 1 lie on the side of the threshold on which value j is, where
  // the threshold parts the two.
  int64_t points_before_crossing(int64_t j, A threshold) const {
    const bool side = values_[j] > threshold;
    const auto stays = [&](int64_t i) { return (at(j, i) > threshold) == side; };
    const double a = values_[j], b = values_[j + 1];
    const double guess = ((threshold - a) / (b - a) * denominator_ - half_step_) / 2 + 1;
    // Rounded, so a point off at times; of no use where a value is not finite.
    int64_t found = guess > 0 ? static_cast<int64_t>(std::min(guess, static_cast<double>(cell_))) : 0;
    while (found > 0 && !stays(found - 1)) {
      --found;
    }
    while (found < cell_ && stays(found)) {
      ++found;
    }
    return found;
  }

  // Sum over all points before point n of cell j, where what is not finite counts as 0.
  double sum_before(int64_t j, int64_t n) const {
    return before_[j] + sum_in_cell(j, n);
  }

  double sum_before(int64_t point) const {
    if (point <= head_) {
      return sum_equal(values_[0], point);
    }
    const int64_t j = std::min((point - head_) / cell_, size - 1);
    return sum_before(j, point - cell_begin(j));
  }

 private:
  // Point i of the cell from value j to value j + 1; beside an infinity it is infinite too.
  double at(int64_t j, int64_t i) const {
    const double a = values_[j], b = values_[j + 1];
    const int64_t numerator = 2 * i + half_step_;
    if (numerator == 0) {
      return a;
    }
    const double step = b - a;
    return std::isfinite(step) ? a + numerator / denominator_ * step : a + b;
  }

  static double sum_equal(double value, int64_t n) {
    return std::isfinite(value) ? n * value : 0;
  }

  // Sum over the first n points of the cell from value j to value j + 1, or of those after the last value.
  double sum_in_cell(int64_t j, int64_t n) const {
    const double a = values_[j];
    if (j + 1 == size) {
      return sum_equal(a, n);
    }
    const double step = values_[j + 1] - a;
    if (!std::isfinite(step)) {  // only a point that lies on the value itself may be finite
      return half_step_ ? 0 : sum_equal(a, std::min<int64_t>(n, 1));
    }
    return n * a + static_cast<double>(n) * (n - 1 + half_step_) / denominator_ * step;
  }

  int64_t stride_, upsample_, head_, cell_, half_step_;
  double denominator_;
  std::vector<A> values_;
  std::vector<double> before_;  // sum over the points before each cell
};

// The first point on the other side of a threshold, and the sum over all points before it.
struct Crossing {
  int64_t point;
  double sum;
};

// The crossings of one threshold, in order of time: runs of points over it are [0, 1), [2, 3), ...
class Crossings : public std::vector<Crossing> {
 public:
  // A second crossing at the same point takes back the first: the curve peaked or dipped between two points.
  void add(int64_t point, double sum) {
    if (!empty() && back().point == point) {
      pop_back();
    } else {
      push_back({point, sum});
    }
  }
};

// Files the crossings of a row by threshold. `thresholds` ascend; sums are taken over `measured`.
template <typename A>
void find_crossings(
    const Curve<A>& curve, const Curve<A>& measured, const std::vector<A>& thresholds, std::vector<int32_t>& ranks,
    std::vector<Crossings>& crossings) {
  for (Crossings& each : crossings) {
    each.clear();
  }
  if (curve.size == 0) {
    return;
  }
  curve.rank(thresholds, ranks);
  for (int32_t k = 0; k < ranks[0]; ++k) {
    crossings[k].add(0, 0);
  }
  for (int64_t j = 0; j + 1 < curve.size; ++j) {
    const auto [low, high] = std::minmax(ranks[j], ranks[j + 1]);
    for (int32_t k = low; k < high; ++k) {
      const int64_t n = curve.points_before_crossing(j, thresholds[k]);
      crossings[k].add(curve.cell_begin(j) + n, measured.sum_before(j, n));
    }
  }
  for (int32_t k = 0; k < ranks[curve.size - 1]; ++k) {
    crossings[k].add(curve.points, measured.sum_before(curve.points));
  }
}

}  // namespace

template <typename T, typename A>
void score_segments(
    const ScoreSegments& call, const T* curves, const T* scores, const A* thresholds,
    std::vector<ScoredSegment<A>>& found, int64_t* counts, int64_t begin, int64_t end) {
  std::vector<int64_t> order(call.thresholds), place(call.thresholds);
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {  // NaN, which nothing exceeds, last
    return thresholds[a] < thresholds[b] || (std::isnan(thresholds[b]) && !std::isnan(thresholds[a]));
  });
  std::vector<A> ascending(call.thresholds);
  for (int64_t i = 0; i < call.thresholds; ++i) {
    ascending[i] = thresholds[order[i]];
    place[order[i]] = i;
  }
  Curve<A> curve(call.stride, call.upsample), other(call.stride, call.upsample);
  const Curve<A>& measured = scores == nullptr ? curve : other;
  std::vector<int32_t> ranks;
  std::vector<Crossings> crossings(call.thresholds);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t length = call.lengths == nullptr ? call.width * call.stride : call.lengths[row];
    curve.load(curves + row * call.width, length);
    if (scores == nullptr) {
      curve.sum_up();
    } else {
      other.load(scores + row * call.width, length);
      other.sum_up();
    }
    find_crossings(curve, measured, ascending, ranks, crossings);
    for (int64_t k = 0; k < call.thresholds; ++k) {
      const Crossings& of = crossings[place[k]];
      counts[row * call.thresholds + k] = of.size() / 2;
      // Sum over [first, last) without run i of what the contrast is taken on; where that is the curve itself, only its
      // runs count, and those in reach lie next to run i.
      const auto outer_sum = [&](size_t i, int64_t first, int64_t last) {
        if (scores != nullptr) {
          return (of[i].sum - measured.sum_before(first)) + (measured.sum_before(last) - of[i + 1].sum);
        }
        double sum = 0;
        for (size_t before = i; before > 0 && of[before - 1].point > first; before -= 2) {
          const Crossing& rise = of[before - 2];
          sum += of[before - 1].sum - (rise.point < first ? measured.sum_before(first) : rise.sum);
        }
        for (size_t after = i + 2; after < of.size() && of[after].point < last; after += 2) {
          const Crossing& fall = of[after + 1];
          sum += (fall.point > last ? measured.sum_before(last) : fall.sum) - of[after].sum;
        }
        return sum;
      };
      for (size_t i = 0; i < of.size(); i += 2) {
        const int64_t rise = of[i].point, fall = of[i + 1].point, size = fall - rise;
        const auto reach =
            static_cast<int64_t>(std::min(call.outer * static_cast<double>(size), static_cast<double>(curve.points)));
        const int64_t first = std::max<int64_t>(rise - reach, 0), last = std::min(fall + reach, curve.points);
        const int64_t outer_size = last - first - size;
        const double inner = (of[i + 1].sum - of[i].sum) / size;
        const double outer = outer_size == 0 ? 0 : outer_sum(i, first, last) / outer_size;
        found.push_back(
            {static_cast<A>(static_cast<double>(rise) / call.upsample),
             static_cast<A>(static_cast<double>(fall) / call.upsample), static_cast<A>(inner - outer)});
      }
    }
  }
}

#define INSTANTIATE(T, A)             \
  template void score_segments<T, A>( \
      const ScoreSegments&, const T*, const T*, const A*, std::vector<ScoredSegment<A>>&, int64_t*, int64_t, int64_t);
INSTANTIATE(float, float)
INSTANTIATE(double, double)
INSTANTIATE(BFloat16, float)
INSTANTIATE(Half, float)
#undef INSTANTIATE

}  // namespace potloc::cpu::POTLOC_CAPABILITY
