#pragma once

#include <cstdint>

#include "cuda/stream.h"
#include "cuda/workspace.h"

namespace potloc::cuda {

// The most points that a row may have.
constexpr int64_t kMaxPoints = int64_t{1} << 30;

// One call, as on the CPU.
struct ScoreSegments {
  int64_t rows, width, thresholds;  // curves are contiguous [N, width]
  int64_t stride, upsample;
  double outer;
  const int64_t* lengths;  // [N] in snippets; null: width * stride
};

template <typename A>
struct CountedSegments {
  int64_t total;
  bool lengths_fit;  // from 0 to width * stride; else the first that does not is
  int64_t wrong_length;
  const A* ascending;        // [K], the thresholds
  const int* order;          // [K], their indices
  const int64_t* run_begin;  // [N * K + 1], the place of the first segment of each row and threshold
};

// Where the segments go: [M, 2] and [M] each.
template <typename A>
struct ScoredSegments {
  A* segments;
  A* scores;
  int64_t* row;
  int64_t* threshold;
};

// Waits for the device, since the caller must know how many segments there are.
template <typename T, typename A>
CountedSegments<A> count_segments(
    const ScoreSegments& call, const T* curves, const A* thresholds, const Workspace& workspace, Stream stream);

// `scores` is null where the contrast is taken on the curve itself.
template <typename T, typename A>
void score_segments(
    const ScoreSegments& call, const T* curves, const T* scores, const CountedSegments<A>& counted,
    const ScoredSegments<A>& out, const Workspace& workspace, Stream stream);

}  // namespace potloc::cuda
