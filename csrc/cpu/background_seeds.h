#pragma once

#include <cstdint>

#include "cpu/capability.h"

namespace potloc::cpu {

// One call: the levels of each of B videos lie one after the other on a time axis of `width` snippets.
struct BackgroundSeeds {
  int64_t width, levels;
  const int64_t* level_begin;  // [levels + 1]
  const bool* mask;            // [B, width], or null where every snippet is real
  double threshold;
  bool outer_argmax;
};

// Rows [begin, end) out of B * levels. All tensors are contiguous [B, width].
POTLOC_FOR_EACH_CAPABILITY(
    template <typename T> void background_seeds(
        const BackgroundSeeds& call, const T* background, const bool* action, bool* seeds, int64_t begin, int64_t end);)

}  // namespace potloc::cpu
