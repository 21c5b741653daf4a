// Background seeds: one walk over every (video, level) row that remembers the current gap between actions.

#include "cpu/background_seeds.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>

namespace potloc::cpu::POTLOC_CAPABILITY {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// A maximal run of snippets without action; -1 where there is no such snippet yet.
template <typename T>
struct Gap {
  int64_t first = -1, last = -1;
  int64_t first_over = -1, last_over = -1;
  int64_t argmax = -1;
  T max{};

  void add(int64_t t, T value, T threshold) {
    first = first < 0 ? t : first;
    last = t;
    if (value > threshold) {
      first_over = first_over < 0 ? t : first_over;
      last_over = t;
    }
    if (argmax < 0 ? value == value : value > max) {
      argmax = t;
      max = value;
    }
  }
};

template <typename T>
void mark_seeds(
    const BackgroundSeeds& call, const Gap<T>& gap, bool after_action, bool before_action, const bool* mask,
    bool* seeds) {
  int64_t first = gap.first_over, last = gap.last_over;
  if (first < 0) {
    if (gap.argmax < 0 || (after_action != before_action && !call.outer_argmax)) {
      return;
    }
    first = last = gap.argmax;
  } else if (before_action && !after_action) {
    first = gap.first;
  } else if (after_action && !before_action) {
    last = gap.last;
  }
  for (int64_t t = first; t <= last; ++t) {
    seeds[t] = mask == nullptr || mask[t];
  }
}

}  // namespace

template <typename T>
void background_seeds(
    const BackgroundSeeds& call, const T* background, const bool* action, bool* seeds, int64_t begin, int64_t end) {
  // The comparison is made in the dtype of the probabilities, as PyTorch makes it.
  const T threshold = static_cast<T>(call.threshold);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t offset = row / call.levels * call.width;
    const int64_t first = call.level_begin[row % call.levels], last = call.level_begin[row % call.levels + 1];
    const T* value = background + offset;
    const bool* is_action = action + offset;
    const bool* mask = call.mask == nullptr ? nullptr : call.mask + offset;
    bool* out = seeds + offset;
    std::fill(out + first, out + last, false);
    Gap<T> gap;
    bool after_action = false;
    for (int64_t t = first; t < last; ++t) {
      if (mask != nullptr && !mask[t]) {
        continue;
      }
      if (is_action[t]) {
        mark_seeds(call, gap, after_action, true, mask, out);
        gap = {};
        after_action = true;
      } else {
        gap.add(t, value[t], threshold);
      }
    }
    mark_seeds(call, gap, after_action, false, mask, out);
  }
}

#define INSTANTIATE(T) \
  template void background_seeds<T>(const BackgroundSeeds&, const T*, const bool*, bool*, int64_t, int64_t);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(BFloat16)
INSTANTIATE(Half)
#undef INSTANTIATE

}  // namespace potloc::cpu::POTLOC_CAPABILITY
