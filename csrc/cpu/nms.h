#pragma once

#include <cstdint>
#include <vector>

#include "cpu/capability.h"

namespace potloc::cpu {

enum class NmsMethod : int64_t { hard, linear, gaussian };

// The rules of one call.
struct Nms {
  NmsMethod method;
  double iou_threshold, sigma, min_score, offset;
  int64_t max_per_group;
  double voting;  // the tIoU from which segments vote, 0 where there is no voting
};

// sort_into_groups: the indices of `groups` [N] by group, ascending, go to `members` [N]; returned is where each group
// begins in it, and N. nms: groups [begin, end). The members of group g are members[group_begin[g] ..
// group_begin[g + 1]], each an index into `segments` [N, 2] and `scores` [N], ascending. What is kept stands from place
// group_begin[g] on in the outputs, by descending score, and is kept_count[g] long.
POTLOC_FOR_EACH_CAPABILITY(
    std::vector<int64_t> sort_into_groups(const int64_t* groups, int64_t size, int64_t* members);
    template <typename T> void nms(
        const Nms& rules, const T* segments, const T* scores, const int64_t* members, const int64_t* group_begin,
        T* kept_segments, T* kept_scores, int64_t* kept, int64_t* kept_count, int64_t begin, int64_t end);)

}  // namespace potloc::cpu
