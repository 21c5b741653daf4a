#pragma once

#include <cstdint>

#include "cpu/capability.h"

namespace potloc::cpu {

// One call. Curve value j lies at time j * stride + 0.5, sampled point p at time (p + 0.5) / upsample, both in
// snippets.
struct ScoreSegments {
  int64_t width, thresholds;  // curves are contiguous [N, width]
  int64_t stride, upsample;
  double outer;
  const int64_t* lengths;  // [N] in snippets, each from 0 to width * stride; null: width * stride
};

// Where the segments go: [M, 2] and [M] each.
template <typename A>
struct ScoredSegments {
  A* segments;
  A* scores;
  int64_t* row;
  int64_t* threshold;
};

// Rows [begin, end) out of N. `counts` is [N, thresholds]: the segments of each pair; `offsets` likewise: the place of
// the first one. `scores` is null where the contrast is taken on the curve itself.
POTLOC_FOR_EACH_CAPABILITY(
    template <typename T, typename A> void count_segments(
        const ScoreSegments& call, const T* curves, const A* thresholds, int64_t* counts, int64_t begin, int64_t end);
    template <typename T, typename A> void score_segments(
        const ScoreSegments& call, const T* curves, const T* scores, const A* thresholds, const int64_t* offsets,
        const ScoredSegments<A>& out, int64_t begin, int64_t end);)

}  // namespace potloc::cpu
