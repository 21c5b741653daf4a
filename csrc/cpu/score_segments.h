#pragma once

#include <cstdint>
#include <vector>

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

template <typename A>
struct ScoredSegment {
  A start, end, score;
};

// Rows [begin, end) out of N: adds their segments to `found`, by row, threshold and time. `counts` is [N, thresholds]:
// the segments of each pair. `scores` is null where the contrast is taken on the curve itself.
POTLOC_FOR_EACH_CAPABILITY(
    template <typename T, typename A> void score_segments(
        const ScoreSegments& call, const T* curves, const T* scores, const A* thresholds,
        std::vector<ScoredSegment<A>>& found, int64_t* counts, int64_t begin, int64_t end);)

}  // namespace potloc::cpu
