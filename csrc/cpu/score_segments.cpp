// Segments over thresholds of linearly upsampled curves, and their outer-inner contrast. The upsampled row is never
// formed: between two neighbouring values the curve is monotone, so the values alone tell where a run begins and ends,
// a binary search in one cell finds the exact point, and sums over points are differences of one prefix sum a cell.
// Built with floating-point contraction off, so that every instruction set decides the same.

#include "cpu/score_segments.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

namespace potloc::cpu::POTLOC_CAPABILITY {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// Points [first, last).
struct Run {
  int64_t first, last;
};

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

  // Calls `f(run)` for the maximal runs of points over the threshold, in order of time.
  template <typename F>
  void for_each_run(A threshold, F&& f) {
    over_.resize(size);
    for (int64_t j = 0; j < size; ++j) {
      over_[j] = values_[j] > threshold;
    }
    const auto find = [&](int64_t j, unsigned char wanted) {
      const void* found = std::memchr(over_.data() + j, wanted, size - j);
      return found == nullptr ? size : static_cast<const unsigned char*>(found) - over_.data();
    };
    Run run{0, 0};
    for (int64_t j = find(0, 1); j < size; j = find(j, 1)) {
      const int64_t first = j == 0 ? 0 : cell_begin(j - 1) + points_before_crossing(j - 1, threshold);
      j = find(j, 0);
      const int64_t last = j == size ? points : cell_begin(j - 1) + points_before_crossing(j - 1, threshold);
      if (first == last) {
        continue;  // the curve peaks between two points
      }
      if (first == run.last) {  // the curve dips between two points, or this run begins with the row
        run.last = last;
      } else {
        if (run.last > 0) {
          f(run);
        }
        run = {first, last};
      }
    }
    if (run.last > 0) {
      f(run);
    }
  }

  // Sum over the points [first, last), where what is not finite counts as 0.
  double sum(int64_t first, int64_t last) const {
    return sum_before(last) - sum_before(first);
  }

 private:
  int64_t cell_begin(int64_t j) const {
    return head_ + j * cell_;
  }

  // Point i of the cell from value j to value j + 1.
  double at(int64_t j, int64_t i) const {
    const double a = values_[j], b = values_[j + 1];
    const int64_t numerator = 2 * i + half_step_;
    return numerator == 0 ? a : a + numerator / denominator_ * (b - a);
  }

  // How many points of the cell lie on the side of the threshold on which its first value is.
  int64_t points_before_crossing(int64_t j, A threshold) const {
    const bool side = over_[j];
    int64_t low = 0, high = cell_;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if ((at(j, middle) > threshold) == side) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
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

  double sum_before(int64_t point) const {
    if (point <= head_) {
      return sum_equal(values_[0], point);
    }
    const int64_t j = std::min((point - head_) / cell_, size - 1);
    return before_[j] + sum_in_cell(j, point - cell_begin(j));
  }

  int64_t stride_, upsample_, head_, cell_, half_step_;
  double denominator_;
  std::vector<A> values_;
  std::vector<double> before_;  // sum over the points before each cell
  std::vector<unsigned char> over_;
};

int64_t row_length(const ScoreSegments& call, int64_t row) {
  return call.lengths == nullptr ? call.width * call.stride : call.lengths[row];
}

}  // namespace

template <typename T, typename A>
void count_segments(
    const ScoreSegments& call, const T* curves, const A* thresholds, int64_t* counts, int64_t begin, int64_t end) {
  Curve<A> curve(call.stride, call.upsample);
  for (int64_t row = begin; row < end; ++row) {
    curve.load(curves + row * call.width, row_length(call, row));
    for (int64_t k = 0; k < call.thresholds; ++k) {
      int64_t count = 0;
      curve.for_each_run(thresholds[k], [&](Run) { ++count; });
      counts[row * call.thresholds + k] = count;
    }
  }
}

template <typename T, typename A>
void score_segments(
    const ScoreSegments& call, const T* curves, const T* scores, const A* thresholds, const int64_t* offsets,
    const ScoredSegments<A>& out, int64_t begin, int64_t end) {
  Curve<A> curve(call.stride, call.upsample), other(call.stride, call.upsample);
  std::vector<Run> runs;
  for (int64_t row = begin; row < end; ++row) {
    curve.load(curves + row * call.width, row_length(call, row));
    curve.sum_up();
    if (scores != nullptr) {
      other.load(scores + row * call.width, row_length(call, row));
      other.sum_up();
    }
    for (int64_t k = 0; k < call.thresholds; ++k) {
      runs.clear();
      curve.for_each_run(thresholds[k], [&](Run run) { runs.push_back(run); });
      // Sum over [first, last) of what the contrast is taken on; where that is the curve itself, only its runs count,
      // and those in reach lie next to run i.
      const auto outer_sum = [&](size_t i, int64_t first, int64_t last) {
        const Run run = runs[i];
        if (scores != nullptr) {
          return other.sum(first, run.first) + other.sum(run.last, last);
        }
        double sum = 0;
        for (size_t before = i; before > 0 && runs[before - 1].last > first; --before) {
          sum += curve.sum(std::max(runs[before - 1].first, first), runs[before - 1].last);
        }
        for (size_t after = i + 1; after < runs.size() && runs[after].first < last; ++after) {
          sum += curve.sum(runs[after].first, std::min(runs[after].last, last));
        }
        return sum;
      };
      int64_t place = offsets[row * call.thresholds + k];
      for (size_t i = 0; i < runs.size(); ++i, ++place) {
        const Run run = runs[i];
        const int64_t size = run.last - run.first;
        const auto reach =
            static_cast<int64_t>(std::min(call.outer * static_cast<double>(size), static_cast<double>(curve.points)));
        const int64_t first = std::max<int64_t>(run.first - reach, 0), last = std::min(run.last + reach, curve.points);
        const int64_t outer_size = last - first - size;
        const double inner = (scores == nullptr ? curve : other).sum(run.first, run.last) / size;
        const double outer = outer_size == 0 ? 0 : outer_sum(i, first, last) / outer_size;
        out.segments[2 * place] = static_cast<A>(static_cast<double>(run.first) / call.upsample);
        out.segments[2 * place + 1] = static_cast<A>(static_cast<double>(run.last) / call.upsample);
        out.scores[place] = static_cast<A>(inner - outer);
        out.row[place] = row;
        out.threshold[place] = k;
      }
    }
  }
}

#define INSTANTIATE(T, A)                                                                                   \
  template void count_segments<T, A>(const ScoreSegments&, const T*, const A*, int64_t*, int64_t, int64_t); \
  template void score_segments<T, A>(                                                                       \
      const ScoreSegments&, const T*, const T*, const A*, const int64_t*, const ScoredSegments<A>&, int64_t, int64_t);
INSTANTIATE(float, float)
INSTANTIATE(double, double)
INSTANTIATE(BFloat16, float)
INSTANTIATE(Half, float)
#undef INSTANTIATE

}  // namespace potloc::cpu::POTLOC_CAPABILITY
