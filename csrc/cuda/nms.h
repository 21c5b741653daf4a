#pragma once

#include <cstdint>

#include "cuda/stream.h"
#include "cuda/workspace.h"

namespace potloc::cuda {

enum class NmsMethod : int64_t { hard, linear, gaussian };

// One call, as on the CPU; at most 2^31 - 1 segments.
struct Nms {
  int64_t size;
  const int64_t* groups;  // [N], or null where all are of one
  NmsMethod method;
  double iou_threshold, sigma, min_score, offset;
  int64_t max_per_group;
  double voting;  // the tIoU from which segments vote, 0 where there is no voting
};

// What is kept. Positions are those in the order of groups and, within a group, of starts.
struct KeptSegments {
  int64_t total;
  const void* bounds;          // [N, 2], by position, float or double
  const uint32_t* index;       // [N], by position
  const int64_t* group_after;  // [N], by position: one more than the number of its group
  const int64_t* group_begin;  // by group: its first position; one more, N
  const int64_t* count;        // by group: how many are kept
  const int64_t* count_up_to;  // by group: likewise, in all up to and with it
  const uint32_t* kept;        // from group_begin[g] on: how far behind it those lie that are kept, by descending score
  const uint64_t* kept_key;    // and the bits of their scores, plus 1, where scores are lowered
};

// Finds what is kept. Waits for the device, since the caller must know how many they are.
template <typename T>
KeptSegments nms(const Nms& rules, const T* segments, const T* scores, const Workspace& workspace, Stream stream);

template <typename T>
void write_kept(
    const Nms& rules, const T* segments, const T* scores, const KeptSegments& found, T* kept_segments, T* kept_scores,
    int64_t* keep, Stream stream);

}  // namespace potloc::cuda
