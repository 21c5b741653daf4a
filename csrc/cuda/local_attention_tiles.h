// Banded softmax attention on tensor cores, for half types. A block owns 64 consecutive positions of one (batch, head),
// 32 where D > 128; a warp 16 of them, and at most 128 columns of the result. What a warp's rows look at are 48
// positions: all of the band up to window 33, so that a row's scores lie in registers, are weighted there, and go on as
// an operand of the second product. Wider windows take several steps, and forward a running maximum. The positions of a
// step lie in shared memory: keys and values, forward and for dq; queries and gradients, for dk and dv. A product runs
// over positions outside of a row's band with weight zero; a value there that is not finite would turn the row to NaN:
// where that happened, the warp computes its rows again, one at a time.
#pragma once

#include "cuda/local_attention_rows.h"
#include "cuda/tensor_core.h"

namespace potloc::cuda {

constexpr float kLog2E = 1.44269504f, kLn2 = 0.693147181f;
constexpr int kWarps = 4, kRows = 16, kStep = 48;
constexpr int kNarrow = (kStep - kRows) / 2;  // the largest radius that one step has all of
constexpr int kWidest = 128;                  // the largest D of windows wider than that
constexpr int kVector = 8;                    // half types in 16 bytes

// How a block shares its work, for heads of up to kWidth columns.
template <int kWidth>
struct Plan {
  static constexpr int kColumns = kWidth < 128 ? kWidth : 128;  // of a warp
  static constexpr int kRowWarps = kWarps * kColumns / kWidth;
  static constexpr int kOwned = kRowWarps * kRows;
  static constexpr int kStaged = kOwned - kRows + kStep;
  static constexpr int kPitch = kWidth + kVector;  // 8 rows of 16 bytes, which are loaded at a time, differ in banks
};

// Blocks that a multiprocessor must have registers for; 0 leaves that to the compiler, which then takes fewest.
template <bool kWide>
constexpr int kBlocks = kWide ? 1 : 0;

// Whether a second operand of the warp's own rows is loaded while the staged rows are on their way. Where a sum lives
// from step to step, or heads are wide, it would not fit in the registers.
template <int kWidth, bool kWide>
constexpr bool kEarly = !kWide && kWidth <= 128;

// A thread's place in its block: its warp's rows and columns, and which elements of a product it holds.
template <int kWidth>
struct Place {
  int lane = threadIdx.x % kWarp;
  int offset = threadIdx.x / kWarp % Plan<kWidth>::kRowWarps * kRows;
  int column = threadIdx.x / kWarp / Plan<kWidth>::kRowWarps * Plan<kWidth>::kColumns;
  int row = lane / 4, pair = lane % 4 * 2;

  __device__ Columns columns(const LocalAttention& call) const {
    const int end = column + Plan<kWidth>::kColumns;
    return {column, end < call.width ? end : static_cast<int>(call.width)};
  }
};

// The steps in which a block's band is walked; those that lie outside of the sequence are left out.
template <int kWidth, bool kWide>
struct Steps {
  int64_t begin = 0, end = 1;

  __device__ Steps(const LocalAttention& call, const Block& block) {
    if constexpr (kWide) {
      const int64_t before = call.radius - block.first, after = call.length - block.first + call.radius;
      const int64_t all = 2 * call.radius + kRows;
      begin = before > Plan<kWidth>::kOwned ? (before - Plan<kWidth>::kOwned) / kStep : 0;
      end = ((all < after ? all : after) + kStep - 1) / kStep;
    }
  }
};

// Begins to copy the rows that step `step` looks at to shared memory. Zeros lie beyond the ends and beyond the width.
template <int kWidth, typename T>
__device__ void stage(
    T* staged, const Matrix<const T>& source, const LocalAttention& call, const Block& block, int64_t step) {
  using P = Plan<kWidth>;
  constexpr int kVectors = kWidth / kVector;
  const int d = threadIdx.x % kVectors * kVector;
  const int64_t first = block.first - call.radius + step * kStep;
  const int64_t last = block.first + P::kOwned + call.radius, end = last < call.length ? last : call.length;
#pragma unroll 4
  for (int row = threadIdx.x / kVectors; row < P::kStaged; row += kWarps * kWarp / kVectors) {
    const int64_t t = first + row;
    const bool inside = t >= 0 && t < end && d < call.width;
    copy_async(staged + row * P::kPitch + d, inside ? source.row(t) + d : source.data, inside);
  }
}

// The rows that the warp owns, from row `first` on, as the first operand of a product.
template <int kWidth, typename T>
__device__ void load_own(
    uint32_t (&own)[kWidth / 16][4], const Matrix<const T>& source, const LocalAttention& call, int64_t first,
    const Place<kWidth>& place) {
  const int width = static_cast<int>(call.width) - place.pair;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int64_t t = first + place.row + i * 8;
    const T* row = source.row(t) + place.pair;
    const int end = t < call.length ? width : 0;
#pragma unroll
    for (int s = 0; s < kWidth / 8; ++s) {
      own[s / 2][i + s % 2 * 2] = s * 8 < end ? *reinterpret_cast<const uint32_t*>(row + s * 8) : 0;
    }
  }
}

using Scores = float[kStep / 8][4];       // 16 rows x 48 positions
using Weights = uint32_t[kStep / 16][4];  // the same, rounded, as the first operand of a product

// own * staged^T, from the first of the warp's 48 staged rows on.
template <int kWidth, typename T>
__device__ void multiply(
    Scores& scores, const uint32_t (&own)[kWidth / 16][4], const T* staged, const Place<kWidth>& place) {
  constexpr int kPitch = Plan<kWidth>::kPitch;
  const T* from = staged + (place.lane / 16 * 8 + place.lane % 8) * kPitch + place.lane / 8 % 2 * 8;
#pragma unroll
  for (int n = 0; n < kStep / 8; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      scores[n][e] = 0;
    }
  }
#pragma unroll
  for (int s = 0; s < kWidth / 16; ++s) {
#pragma unroll
    for (int n = 0; n < kStep / 8; n += 2) {
      uint32_t b[4];
      load_matrices<false>(b, from + n * 8 * kPitch + s * 16);
      multiply_add<T>(scores[n], own[s], b[0], b[1]);
      multiply_add<T>(scores[n + 1], own[s], b[2], b[3]);
    }
  }
}

// sum += weights * staged, the warp's columns of it.
template <int kWidth, typename T, int kTiles>
__device__ void accumulate(
    float (&sum)[kTiles][4], const Weights& weights, const T* staged, const Place<kWidth>& place) {
  constexpr int kPitch = Plan<kWidth>::kPitch;
  const T* from = staged + place.lane % 16 * kPitch + place.column + place.lane / 16 * 8;
#pragma unroll
  for (int s = 0; s < kStep / 16; ++s) {
#pragma unroll
    for (int n = 0; n < kTiles; n += 2) {
      uint32_t b[4];
      load_matrices<true>(b, from + s * 16 * kPitch + n * 8);
      multiply_add<T>(sum[n], weights[s], b[0], b[1]);
      multiply_add<T>(sum[n + 1], weights[s], b[2], b[3]);
    }
  }
}

template <typename T>
__device__ void round_weights(Weights& weights, const Scores& scores) {
#pragma unroll
  for (int n = 0; n < kStep / 8; ++n) {
    weights[n / 2][n % 2 * 2] = pack<T>(scores[n][0], scores[n][1]);
    weights[n / 2][n % 2 * 2 + 1] = pack<T>(scores[n][2], scores[n][3]);
  }
}

// Calls f(n, e, row) for each score of this thread.
template <typename F>
__device__ __forceinline__ void for_each_score(F&& f) {
#pragma unroll
  for (int n = 0; n < kStep / 8; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      f(n, e, e / 2);
    }
  }
}

// A bit for each of the 48 positions that f(position) is true of. For the whole warp.
template <typename F>
__device__ uint64_t positions_where(int lane, F&& f) {
  const unsigned lower = __ballot_sync(kAllLanes, f(lane));
  const unsigned upper = __ballot_sync(kAllLanes, lane < kStep - kWarp && f(kWarp + lane));
  return lower | static_cast<uint64_t>(upper) << kWarp;
}

// Which scores of this thread count: `positions` of the step, within the bands of its two rows.
struct Seen {
  uint64_t bits[2];

  template <int kWidth>
  __device__ Seen(uint64_t positions, const LocalAttention& call, int64_t step, const Place<kWidth>& place) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int64_t begin = place.row + i * 8 - step * kStep, end = begin + 2 * call.radius + 1;
      bits[i] = (positions & below(end) & ~below(begin)) >> place.pair;
    }
  }

  __device__ static uint64_t below(int64_t position) {
    return position <= 0 ? 0 : position >= kStep ? ~uint64_t{0} : (uint64_t{1} << position) - 1;
  }

  __device__ __forceinline__ bool operator()(int n, int e) const {
    return (bits[e / 2] >> (n * 8 + e % 2) & 1) != 0;
  }
};

// Over the four lanes that share a row.
__device__ float sum_of_row(float x) {
  x += __shfl_xor_sync(kAllLanes, x, 1);
  return x + __shfl_xor_sync(kAllLanes, x, 2);
}

__device__ float highest_of_row(float x) {
  x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, 1));
  return fmaxf(x, __shfl_xor_sync(kAllLanes, x, 2));
}

// False where a staged value that is not finite may have come into rows outside of whose band it lies. It comes into
// every row of its column, so every second one is looked at.
template <int kTiles>
__device__ bool is_finite(const float (&sum)[kTiles][4]) {
  float total = 0;
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    total += sum[n][0] + sum[n][1];
  }
  return __all_sync(kAllLanes, total - total == 0) != 0;
}

// Calls f(row) for each of the warp's rows within the sequence, whose first is `first`, 16 lanes a row.
template <typename F>
__device__ void row_by_row(const LocalAttention& call, int64_t first, F&& f) {
  const int64_t end = first + kRows < call.length ? first + kRows : call.length;
  for (int64_t t = first + threadIdx.x % kWarp / kRowLanes; t < end; t += kWarp / kRowLanes) {
    f(t);
  }
}

// Writes `sum` times `factor` to the warp's 16 rows of `target`, from row `first` on. Neighbouring lanes exchange
// halves first, so that each of them has four columns of one row in a run.
template <int kWidth, typename T, int kTiles>
__device__ void store(
    const Matrix<T>& target, const float (&sum)[kTiles][4], const float (&factor)[2], const LocalAttention& call,
    int64_t first, const Place<kWidth>& place) {
  const bool odd = place.lane % 2 != 0;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = place.row + i * 8;
    T* const to = target.row(first + row);
#pragma unroll
    for (int n = 0; n < kTiles; n += 2) {
      const uint32_t left = pack<T>(sum[n][i * 2] * factor[i], sum[n][i * 2 + 1] * factor[i]);
      const uint32_t right = pack<T>(sum[n + 1][i * 2] * factor[i], sum[n + 1][i * 2 + 1] * factor[i]);
      const uint32_t other = __shfl_xor_sync(kAllLanes, odd ? left : right, 1);
      const uint2 four = odd ? uint2{other, right} : uint2{left, other};
      const int d = place.column + n * 8 + (odd ? 8 + place.pair - 2 : place.pair);
      if (row < call.length - first && d < call.width) {
        *reinterpret_cast<uint2*>(to + d) = four;
      }
    }
  }
}

template <typename T, int kWidth, bool kWide>
__global__ void __launch_bounds__(kWarps* kWarp, kBlocks<kWide>) forward_kernel(
    LocalAttention call, Strided<const T> q, Strided<const T> k, Strided<const T> v, Strided<T> out, float* lse) {
  using P = Plan<kWidth>;
  const Block block(call, P::kOwned);
  const Place<kWidth> place;
  const Matrix<const T> queries(q, block), keys(k, block), values(v, block);
  const Matrix<T> target(out, block);
  T* const staged_keys = shared_memory<T>();
  T* const staged_values = staged_keys + P::kStaged * P::kPitch;
  const int64_t first = block.first + place.offset;  // of the warp's rows
  const auto scale = static_cast<float>(call.scale) * kLog2E;
  float sum[P::kColumns / 8][4] = {}, total[2] = {0, 0}, highest[2] = {kNothing<float>, kNothing<float>};
  const Steps<kWidth, kWide> steps(call, block);
  for (int64_t step = steps.begin; step < steps.end; ++step) {
    if (kWide) {
      __syncthreads();  // the step before has been read
    }
    stage<kWidth>(staged_keys, keys, call, block, step);
    stage<kWidth>(staged_values, values, call, block, step);
    uint32_t own[kWidth / 16][4];
    load_own(own, queries, call, first, place);
    const int64_t seen_first = first - call.radius + step * kStep;
    const Seen seen(
        positions_where(
            place.lane,
            [&](int position) {
              const int64_t t = seen_first + position;
              return t >= 0 && t < call.length && block.is_key(t);
            }),
        call, step, place);
    wait_for_copies();
    __syncthreads();

    Scores scores;
    multiply(scores, own, staged_keys + place.offset * P::kPitch, place);
    float top[2] = {highest[0], highest[1]};
    for_each_score([&](int n, int e, int row) {
      scores[n][e] = seen(n, e) ? scores[n][e] * scale : kNothing<float>;
      top[row] = fmaxf(top[row], scores[n][e]);
    });
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      top[i] = highest_of_row(top[i]);
      if (kWide) {
        const float rescale = highest[i] == top[i] ? 1.0f : exp2f(highest[i] - top[i]);
        total[i] *= rescale;
#pragma unroll
        for (int n = 0; n < P::kColumns / 8; ++n) {
          sum[n][i * 2] *= rescale;
          sum[n][i * 2 + 1] *= rescale;
        }
      }
      highest[i] = top[i];
    }
    for_each_score([&](int n, int e, int row) {
      scores[n][e] = seen(n, e) ? exp2f(scores[n][e] - highest[row]) : 0.0f;
      total[row] += scores[n][e];
    });
    Weights weights;
    round_weights<T>(weights, scores);
    accumulate(sum, weights, staged_values + place.offset * P::kPitch, place);
  }

  float factor[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    total[i] = sum_of_row(total[i]);
    factor[i] = total[i] == 0 ? 0.0f : 1 / total[i];
    const int64_t t = first + place.row + i * 8;
    if (place.lane % 4 == 0 && place.column == 0 && t < call.length) {
      lse[block.sequence * call.length + t] = (highest[i] + log2f(total[i])) * kLn2;
    }
  }
  if (is_finite(sum)) {
    store(target, sum, factor, call, first, place);
  } else {
    row_by_row(call, first, [&](int64_t t) {
      forward_row<kWidth / kRowLanes, T, float>(
          call, block, queries, keys, values, t, target.row(t), place.columns(call));
    });
  }
}

template <typename T, int kWidth, bool kWide>
__global__ void __launch_bounds__(kWarps* kWarp, kBlocks<kWide>) query_grad_kernel(
    LocalAttention call, Strided<const T> grad_out, Strided<const T> q, Strided<const T> k, Strided<const T> v,
    const float* lse, float* delta, Strided<T> grad_q) {
  using P = Plan<kWidth>;
  const Block block(call, P::kOwned);
  const Place<kWidth> place;
  const Matrix<const T> grads(grad_out, block), queries(q, block), keys(k, block), values(v, block);
  const Matrix<T> target(grad_q, block);
  T* const staged_keys = shared_memory<T>();
  T* const staged_values = staged_keys + P::kStaged * P::kPitch;
  const int64_t first = block.first + place.offset;
  const auto scale = static_cast<float>(call.scale);
  lse += block.sequence * call.length;
  delta += block.sequence * call.length;
  float log_sum[2], mean[2] = {0, 0}, sum[P::kColumns / 8][4] = {};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int64_t t = first + place.row + i * 8;
    log_sum[i] = t < call.length ? lse[t] : kNothing<float>;
  }
  const Steps<kWidth, kWide> steps(call, block);
  // A band of several steps is walked twice: for delta, then for dq.
  for (int walk = kWide ? 0 : 1; walk < 2; ++walk) {
    for (int64_t step = steps.begin; step < steps.end; ++step) {
      if (kWide) {
        __syncthreads();
      }
      stage<kWidth>(staged_keys, keys, call, block, step);
      stage<kWidth>(staged_values, values, call, block, step);
      uint32_t own[kWidth / 16][4], own_grads[kWidth / 16][4];
      load_own(own, queries, call, first, place);
      if (kEarly<kWidth, kWide>) {
        load_own(own_grads, grads, call, first, place);
      }
      const int64_t seen_first = first - call.radius + step * kStep;
      const Seen seen(
          positions_where(
              place.lane,
              [&](int position) {
                const int64_t t = seen_first + position;
                return t >= 0 && t < call.length && block.is_key(t);
              }),
          call, step, place);
      wait_for_copies();
      __syncthreads();

      Scores scores, slopes;
      multiply(scores, own, staged_keys + place.offset * P::kPitch, place);
      if (!kEarly<kWidth, kWide>) {
        load_own(own_grads, grads, call, first, place);
      }
      multiply(slopes, own_grads, staged_values + place.offset * P::kPitch, place);
      for_each_score([&](int n, int e, int row) {
        const bool counts = seen(n, e) && log_sum[row] != kNothing<float>;
        scores[n][e] = counts ? exp2f((scores[n][e] * scale - log_sum[row]) * kLog2E) : 0.0f;
        slopes[n][e] = counts ? slopes[n][e] : 0.0f;
        mean[row] += kWide && walk == 1 ? 0.0f : scores[n][e] * slopes[n][e];
      });
      if (kWide && walk == 0) {
        continue;
      }
      if (!kWide) {
        mean[0] = sum_of_row(mean[0]);
        mean[1] = sum_of_row(mean[1]);
      }
      for_each_score([&](int n, int e, int row) { scores[n][e] *= slopes[n][e] - mean[row]; });
      Weights weights;
      round_weights<T>(weights, scores);
      accumulate(sum, weights, staged_keys + place.offset * P::kPitch, place);
    }
    if (kWide && walk == 0) {
      mean[0] = sum_of_row(mean[0]);
      mean[1] = sum_of_row(mean[1]);
    }
  }

#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int64_t t = first + place.row + i * 8;
    if (place.lane % 4 == 0 && place.column == 0 && t < call.length) {
      delta[t] = mean[i];
    }
  }
  if (is_finite(sum)) {
    store(target, sum, {scale, scale}, call, first, place);
  } else {
    row_by_row(call, first, [&](int64_t t) {
      query_grad_row<kWidth / kRowLanes, T, float>(
          call, block, grads, queries, keys, values, t, lse[t], target.row(t), place.columns(call));
    });
  }
}

template <typename T, int kWidth, bool kWide>
__global__ void __launch_bounds__(kWarps* kWarp, kBlocks<kWide>) key_grad_kernel(
    LocalAttention call, Strided<const T> grad_out, Strided<const T> q, Strided<const T> k, Strided<const T> v,
    const float* lse, const float* delta, Strided<T> grad_k, Strided<T> grad_v) {
  using P = Plan<kWidth>;
  const Block block(call, P::kOwned);
  const Place<kWidth> place;
  const Matrix<const T> grads(grad_out, block), queries(q, block), keys(k, block), values(v, block);
  T* const staged_queries = shared_memory<T>();
  T* const staged_grads = staged_queries + P::kStaged * P::kPitch;
  const int64_t first = block.first + place.offset;
  const auto scale = static_cast<float>(call.scale);
  lse += block.sequence * call.length;
  delta += block.sequence * call.length;
  bool is_key[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int64_t t = first + place.row + i * 8;
    is_key[i] = t < call.length && block.is_key(t);
  }
  const Steps<kWidth, kWide> steps(call, block);
  Weights weights, grad_scores;  // for dv and for dk; one after the other in the first where the band is wide
#pragma unroll(kWide ? 1 : 2)
  for (int result = 0; result < 2; ++result) {  // dv, then dk; a band of several steps is walked for each
    float sum[P::kColumns / 8][4] = {};
    for (int64_t step = steps.begin; step < steps.end; ++step) {
      if (kWide || result == 0) {
        if (kWide) {
          __syncthreads();
        }
        stage<kWidth>(staged_queries, queries, call, block, step);
        stage<kWidth>(staged_grads, grads, call, block, step);
        uint32_t own_keys[kWidth / 16][4], own_values[kWidth / 16][4];
        load_own(own_keys, keys, call, first, place);
        if (kEarly<kWidth, kWide>) {
          load_own(own_values, values, call, first, place);
        }
        // Of the queries at positions lane and 32 + lane of the step.
        float log_sum[2], mean[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int position = place.lane + i * kWarp;
          const int64_t t = first - call.radius + step * kStep + position;
          const bool inside = position < kStep && t >= 0 && t < call.length;
          log_sum[i] = inside ? lse[t] : kNothing<float>;
          mean[i] = inside ? delta[t] : 0.0f;
        }
        const Seen seen(
            positions_where(place.lane, [&](int position) { return log_sum[position / kWarp] != kNothing<float>; }),
            call, step, place);
        wait_for_copies();
        __syncthreads();

        Scores scores, slopes;
        multiply(scores, own_keys, staged_queries + place.offset * P::kPitch, place);
        for_each_score([&](int n, int e, int row) {
          const float query_log_sum = __shfl_sync(kAllLanes, log_sum[n / 4], (n * 8 + place.pair + e % 2) % kWarp);
          const bool counts = seen(n, e) && is_key[row];
          scores[n][e] = counts ? exp2f((scores[n][e] * scale - query_log_sum) * kLog2E) : 0.0f;
        });
        round_weights<T>(weights, scores);
        if (!kWide || result == 1) {
          if (!kEarly<kWidth, kWide>) {
            load_own(own_values, values, call, first, place);
          }
          multiply(slopes, own_values, staged_grads + place.offset * P::kPitch, place);
          for_each_score([&](int n, int e, int row) {
            const float query_mean = __shfl_sync(kAllLanes, mean[n / 4], (n * 8 + place.pair + e % 2) % kWarp);
            const bool counts = seen(n, e) && is_key[row];
            scores[n][e] = counts ? scores[n][e] * (slopes[n][e] - query_mean) : 0.0f;
          });
          round_weights<T>(kWide ? weights : grad_scores, scores);
        }
      }
      accumulate(
          sum, kWide || result == 0 ? weights : grad_scores,
          (result == 0 ? staged_grads : staged_queries) + place.offset * P::kPitch, place);
    }
    const Matrix<T> key_target(grad_k, block), value_target(grad_v, block);
    if (!is_finite(sum)) {
      row_by_row(call, first, [&](int64_t t) {
        key_grad_row<kWidth / kRowLanes, T, float>(
            call, block, grads, queries, keys, values, t, lse, delta, key_target.row(t), value_target.row(t),
            place.columns(call));
      });
    } else if (result == 0) {
      store(value_target, sum, {1.0f, 1.0f}, call, first, place);
    } else {
      store(key_target, sum, {scale, scale}, call, first, place);
    }
  }
}

}  // namespace potloc::cuda
