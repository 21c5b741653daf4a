#pragma once

#include <cstdint>

#include "cuda/stream.h"

namespace potloc::cuda {

constexpr int64_t kMaxLevels = 16;

// One call, as on the CPU; the levels begin at `level_begin`, an array passed by value.
struct BackgroundSeeds {
  int64_t videos, width, levels;
  int64_t level_begin[kMaxLevels + 1];
  const bool* mask;  // [B, width], or null
  double threshold;
  bool outer_argmax;
};

template <typename T>
void background_seeds(const BackgroundSeeds& call, const T* background, const bool* action, bool* seeds, Stream stream);

}  // namespace potloc::cuda
