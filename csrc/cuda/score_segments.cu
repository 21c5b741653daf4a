// Segments over thresholds, and their contrast; a block has a row. The rank of a value is the number of thresholds that
// it exceeds. Between two values the curve crosses the thresholds from the one's rank to the other's, each at a point
// that a binary search finds. Where no point lies on a value, a peak or dip counts as far as the points beside it go;
// so no two crossings of a threshold meet, and they are by turns where a run begins and where one has ended.
// Counting adds up, in integers, the rises of each threshold. Writing takes the row 256 cells at a time, a thread a
// cell: a bit for each crossing, so the bits before it give its place among those of its threshold. Sums over points
// are differences of one prefix sum, added up in order by one thread, so that scores have the CPU's very bits (no
// floating-point contraction); then a lane scores a segment. Memory: sums of 8 bytes a value, points of 4 a crossing.

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <type_traits>

#include "cuda/memory.h"
#include "cuda/platform.h"
#include "cuda/scan.h"
#include "cuda/score_segments.h"

namespace potloc::cuda {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

constexpr const char* kOp = "score_segments";
constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr int kTogether = 128;  // thresholds whose crossings are placed at the same time

__device__ int64_t row_length(const ScoreSegments& call, int64_t row) {
  return call.lengths == nullptr ? call.width * call.stride : call.lengths[row];
}

// One row as sampled: the first `head` points hold the first value, then `cell` points lie between each value and the
// next, and the rest hold the last value.
template <typename T>
class Curve {
 public:
  using A = std::conditional_t<std::is_same_v<T, double>, double, float>;

  int size, points, cell;

  __device__ Curve(const ScoreSegments& call, const T* curves, int64_t row, int64_t length)
      : size(static_cast<int>((length + call.stride - 1) / call.stride)),
        points(static_cast<int>(length * call.upsample)),
        cell(static_cast<int>(call.stride * call.upsample)),
        head_(static_cast<int>(call.upsample / 2)),
        half_step_(call.upsample % 2 == 0),
        denominator_(2.0 * call.stride * call.upsample),
        values_(curves + row * call.width) {
  }

  // The number of thresholds that value j, or the points around it, exceed.
  __device__ int rank(int j, const A* ascending, int thresholds) const {
    const A value = at(j);
    const int own = rank_of(value, ascending, thresholds);
    if (!half_step_ || j == 0 || j == size - 1) {
      return own;
    }
    const A left = at(j - 1), right = at(j + 1);
    const bool peak = !(left >= value) && !(right >= value), dip = left > value && right > value;
    if (!peak && !dip) {
      return own;
    }
    const int before = rank_of(at(j - 1, cell - 1), ascending, thresholds);
    const int after = rank_of(at(j, 0), ascending, thresholds);
    return peak ? min(own, max(before, after)) : max(own, min(before, after));
  }

  // The first point that lies on the other side of the threshold than what comes before; cells are numbered by the
  // value that they begin at, from -1, before the row, on.
  __device__ int crossing(int j, A threshold) const {
    if (j < 0 || j == size - 1) {
      return j < 0 ? 0 : points;
    }
    const bool side = at(j) > threshold;
    int low = 0, high = cell;
    while (low < high) {
      const int middle = (low + high) / 2;
      if ((at(j, middle) > threshold) == side) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return cell_begin(j) + low;
  }

  // Sum over the first n points of the cell from value j to value j + 1, or of those after the last value; what is not
  // finite counts as 0.
  __device__ double sum_in_cell(int j, int n) const {
    const double a = at(j);
    if (j + 1 == size) {
      return sum_equal(a, n);
    }
    const double step = at(j + 1) - a;
    if (!is_finite(step)) {  // only a point that lies on the value itself may be finite
      return half_step_ ? 0 : sum_equal(a, min(n, 1));
    }
    return n * a + static_cast<double>(n) * (n - 1 + half_step_) / denominator_ * step;
  }

  __device__ double sum_of_head() const {
    return sum_equal(at(0), head_);
  }

  // Sum over the points before this one; `before` is the sum over the points before each cell.
  __device__ double sum_before(int point, const double* before) const {
    if (point <= head_) {
      return sum_equal(at(0), point);
    }
    const int j = min((point - head_) / cell, size - 1);
    return before[j] + sum_in_cell(j, point - cell_begin(j));
  }

 private:
  static __device__ bool is_finite(double value) {
    return value - value == 0;
  }

  static __device__ double sum_equal(double value, int n) {
    return is_finite(value) ? n * value : 0;
  }

  template <typename X>
  static __device__ int rank_of(X value, const A* ascending, int thresholds) {
    int low = 0, high = thresholds;
    while (low < high) {
      const int middle = (low + high) / 2;
      if (value > ascending[middle]) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  }

  __device__ int cell_begin(int j) const {
    return head_ + j * cell;
  }

  __device__ A at(int j) const {
    return static_cast<A>(values_[j]);
  }

  // Point i of the cell from value j to value j + 1; beside an infinity it is infinite too.
  __device__ double at(int j, int i) const {
    const double a = at(j), b = at(j + 1);
    const int numerator = 2 * i + half_step_;
    if (numerator == 0) {
      return a;
    }
    const double step = b - a;
    return is_finite(step) ? a + numerator / denominator_ * step : a + b;
  }

  int head_, half_step_;
  double denominator_;
  const T* values_;
};

// The ranks of the values at the ends of this thread's cell, in a tile of cells that begins with the one before value
// `tile`; outside the row nothing is over a threshold. `ranks` is the block's, kThreads + 1 long, its last the first of
// the next tile.
struct Step {
  int from, to;
};

template <typename T, typename A>
__device__ Step step_of(const Curve<T>& curve, int tile, const A* ascending, int thresholds, int* ranks) {
  const int t = threadIdx.x, j = tile + t;
  const int rank = j < curve.size ? curve.rank(j, ascending, thresholds) : 0;
  const int last = tile == 0 ? 0 : ranks[kThreads];
  __syncthreads();
  ranks[t + 1] = rank;
  if (t == 0) {
    ranks[0] = last;
  }
  __syncthreads();
  return {ranks[t], rank};
}

template <typename A>
__global__ void __launch_bounds__(kThreads)
    sort_thresholds_kernel(int thresholds, const A* values, A* ascending, int* order) {
  const int k = blockIdx.x * kThreads + threadIdx.x;
  if (k >= thresholds) {
    return;
  }
  const A value = values[k];
  int place = 0;
  for (int i = 0; i < thresholds; ++i) {
    const A other = values[i];
    const bool less = other < value || (value != value && other == other);  // NaN last
    const bool more = value < other || (value == value && other != other);
    place += less || (!more && i < k);
  }
  ascending[place] = value;
  order[place] = k;
}

// Adds the segments of each threshold to `counts` [N * K]. `wrong` is [1]: the number of rows from the first on whose
// length is wrong, else left.
template <typename T, typename A>
__global__ void __launch_bounds__(kThreads) count_kernel(
    ScoreSegments call, const T* curves, const A* ascending, const int* order, unsigned long long* counts,
    unsigned long long* wrong) {
  const int64_t row = blockIdx.x, length = row_length(call, row);
  if (length < 0 || length > call.width * call.stride) {
    if (threadIdx.x == 0) {
      atomicMax(wrong, static_cast<unsigned long long>(call.rows - row));
    }
    return;
  }
  const Curve<T> curve(call, curves, row, length);
  const int thresholds = static_cast<int>(call.thresholds);
  for (int tile = 0; tile <= curve.size; tile += kThreads) {
    const Step step = step_of(curve, tile, ascending, thresholds, shared_memory<int>());
    for (int k = step.from; k < step.to; ++k) {
      atomicAdd(counts + row * thresholds + order[k], 1ull);
    }
  }
}

struct Shared {
  double sums[kThreads];
  int ranks[kThreads + 1];
  int placed[kTogether];             // crossings in the tiles before
  unsigned bits[kTogether][kWarps];  // a crossing in each cell of the tile
};

// `before` [N, width]: sums over the points before each cell. `crossings` [2 * M]: the points where runs begin and end.
template <typename T, typename A>
__global__ void __launch_bounds__(kThreads) write_kernel(
    ScoreSegments call, const T* curves, const T* scores, CountedSegments<A> counted, double* before, int* crossings,
    ScoredSegments<A> out) {
  const int64_t row = blockIdx.x, length = row_length(call, row);
  const int t = threadIdx.x, warp = t / kWarp, lane = t % kWarp;
  const int thresholds = static_cast<int>(call.thresholds);
  const int64_t* run_begin = counted.run_begin + row * thresholds;
  const Curve<T> curve(call, curves, row, length);
  const Curve<T> measured(call, scores == nullptr ? curves : scores, row, length);
  auto& shared = *shared_memory<Shared>();
  before += row * call.width;

  double total = curve.size == 0 ? 0 : measured.sum_of_head();
  for (int tile = 0; tile < curve.size; tile += kThreads) {
    const int size = min(curve.size - tile, kThreads);
    shared.sums[t] = t < size ? measured.sum_in_cell(tile + t, curve.cell) : 0;
    __syncthreads();
    if (t == 0) {
#pragma unroll 16
      for (int i = 0; i < kThreads; ++i) {
        const double sum = shared.sums[i];
        shared.sums[i] = total;
        total += sum;
      }
    }
    __syncthreads();
    if (t < size) {
      before[tile + t] = shared.sums[t];
    }
  }

  for (int first = 0; first < thresholds; first += kTogether) {
    const int last = min(first + kTogether, thresholds);
    const auto clear = [&] {
      for (int i = t; i < kTogether * kWarps; i += kThreads) {
        shared.bits[i / kWarps][i % kWarps] = 0;
      }
    };
    clear();
    if (t < kTogether) {
      shared.placed[t] = 0;
    }
    for (int tile = 0; tile <= curve.size; tile += kThreads) {
      const Step step = step_of(curve, tile, counted.ascending, thresholds, shared.ranks);
      const int low = max(min(step.from, step.to), first), high = min(max(step.from, step.to), last);
      for (int k = low; k < high; ++k) {
        atomicOr(&shared.bits[k - first][warp], 1u << lane);
      }
      __syncthreads();
      for (int k = low; k < high; ++k) {
        const unsigned* bits = shared.bits[k - first];
        int place = shared.placed[k - first] + __popc(bits[warp] & ((1u << lane) - 1));
        for (int w = 0; w < warp; ++w) {
          place += __popc(bits[w]);
        }
        crossings[2 * run_begin[counted.order[k]] + place] = curve.crossing(tile + t - 1, counted.ascending[k]);
      }
      __syncthreads();
      if (t < last - first) {
        for (int w = 0; w < kWarps; ++w) {
          shared.placed[t] += __popc(shared.bits[t][w]);
          shared.bits[t][w] = 0;
        }
      }
    }
    __syncthreads();
  }

  for (int k = warp; k < thresholds; k += kWarps) {
    const int runs = static_cast<int>(run_begin[k + 1] - run_begin[k]);
    const int* points = crossings + 2 * run_begin[k];
    for (int i = lane; i < runs; i += kWarp) {
      const int rise = points[2 * i], fall = points[2 * i + 1], size = fall - rise;
      const int reach = static_cast<int>(fmin(call.outer * size, static_cast<double>(curve.points)));
      const int begin = rise - min(reach, rise), end = fall + min(reach, curve.points - fall);
      const int outer_size = end - begin - size;
      const auto sum = [&](int from, int to) {
        return measured.sum_before(to, before) - measured.sum_before(from, before);
      };
      double outer = 0;
      if (outer_size > 0) {
        if (scores != nullptr) {
          outer = sum(begin, rise) + sum(fall, end);
        } else {  // only runs count, and those in reach lie next to this one
          for (int near = i; near > 0 && points[2 * near - 1] > begin; --near) {
            outer += sum(max(points[2 * near - 2], begin), points[2 * near - 1]);
          }
          for (int near = i + 1; near < runs && points[2 * near] < end; ++near) {
            outer += sum(points[2 * near], min(points[2 * near + 1], end));
          }
        }
        outer /= outer_size;
      }
      const int64_t place = run_begin[k] + i;
      out.segments[2 * place] = static_cast<A>(static_cast<double>(rise) / call.upsample);
      out.segments[2 * place + 1] = static_cast<A>(static_cast<double>(fall) / call.upsample);
      out.scores[place] = static_cast<A>(sum(rise, fall) / size - outer);
      out.row[place] = row;
      out.threshold[place] = k;
    }
  }
}

}  // namespace

template <typename T, typename A>
CountedSegments<A> count_segments(
    const ScoreSegments& call, const T* curves, const A* thresholds, const Workspace& workspace, Stream stream) {
  auto* const on = static_cast<cudaStream_t>(stream);
  const int64_t pairs = call.rows * call.thresholds;
  const int levels = static_cast<int>(call.thresholds);
  A* ascending = take<A>(workspace, levels);
  int* order = take<int>(workspace, levels);
  // 0, the counts, and what lengths are wrong: one copy brings the last sum and that to the host.
  auto* counts = take<int64_t>(workspace, pairs + 2);
  auto* wrong = reinterpret_cast<unsigned long long*>(counts + pairs + 1);
  set_zero(kOp, counts, pairs + 2, on);
  if (levels > 0) {
    const Grid grid{blocks_for(levels, kThreads), kThreads, 0, on};
    launch(kOp, sort_thresholds_kernel<A>, grid, levels, thresholds, ascending, order);
  }
  const Grid grid{static_cast<unsigned>(call.rows), kThreads, (kThreads + 1) * sizeof(int), on};
  launch(
      kOp, count_kernel<T, A>, grid, call, curves, ascending, order, reinterpret_cast<unsigned long long*>(counts + 1),
      wrong);
  if (pairs > 0) {
    sum_up(kOp, counts + 1, counts + 1, static_cast<int>(pairs), workspace, on);
  }
  const auto [total, rows_from_wrong] = read_back<2>(kOp, counts + pairs, on);
  if (rows_from_wrong > 0) {
    return {total,     false, read_back<1>(kOp, call.lengths + call.rows - rows_from_wrong, on)[0],
            ascending, order, counts};
  }
  return {total, true, 0, ascending, order, counts};
}

template <typename T, typename A>
void score_segments(
    const ScoreSegments& call, const T* curves, const T* scores, const CountedSegments<A>& counted,
    const ScoredSegments<A>& out, const Workspace& workspace, Stream stream) {
  const Grid grid{static_cast<unsigned>(call.rows), kThreads, sizeof(Shared), static_cast<cudaStream_t>(stream)};
  double* before = take<double>(workspace, call.rows * call.width);
  int* crossings = take<int>(workspace, 2 * counted.total);
  launch(kOp, write_kernel<T, A>, grid, call, curves, scores, counted, before, crossings, out);
}

#define POTLOC_INSTANTIATE(T, A)                                                                                       \
  template CountedSegments<A> count_segments<T, A>(                                                                    \
      const ScoreSegments&, const T*, const A*, const Workspace&, Stream);                                             \
  template void score_segments<T, A>(                                                                                  \
      const ScoreSegments&, const T*, const T*, const CountedSegments<A>&, const ScoredSegments<A>&, const Workspace&, \
      Stream);
POTLOC_INSTANTIATE(float, float)
POTLOC_INSTANTIATE(double, double)
POTLOC_INSTANTIATE(BFloat16, float)
POTLOC_INSTANTIATE(Half, float)

}  // namespace potloc::cuda
