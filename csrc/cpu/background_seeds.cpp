// Background seeds, row by row (a row is a level of a video). A first pass marks what exceeds the threshold; from
// action to action, which a search for a byte finds, each gap then takes one search from either end, and one for its
// highest value where nothing in it exceeds the threshold. What the mask leaves out is neither action nor over, and its
// value is NaN; seeds that are marked across it take the mask itself.

#include "cpu/background_seeds.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <type_traits>

#include "cpu/convert.h"

namespace potloc::cpu::POTLOC_CAPABILITY {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// The first of [begin, end) that is true, or `end`.
const bool* find_true(const bool* begin, const bool* end) {
  const void* found = begin == end ? nullptr : std::memchr(begin, true, end - begin);
  return found == nullptr ? end : static_cast<const bool*>(found);
}

// The position of the first highest value of [begin, end), or `end` where all are NaN.
template <typename A>
int64_t argmax(const A* value, int64_t begin, int64_t end) {
  int64_t best = begin;
  while (best < end && value[best] != value[best]) {
    ++best;
  }
  A highest = best < end ? value[best] : A(0);
  for (int64_t t = best + 1; t < end; ++t) {
    if (value[t] > highest) {
      highest = value[best = t];
    }
  }
  return best;
}

// One row, with room for its values and flags.
template <typename A>
class Row {
 public:
  explicit Row(int64_t longest) : value_(new A[longest]), over_(new bool[longest]), action_(new bool[longest]) {
  }

  template <typename T>
  void mark(
      const T* background, const bool* action, const bool* mask, bool* seeds, int64_t length, T threshold,
      bool outer_argmax) {
    A* value = value_.get();
    bool *over = over_.get(), *real_action = action_.get();
    convert(background, value, length);
    if (mask != nullptr) {
#pragma omp simd
      for (int64_t t = 0; t < length; ++t) {
        value[t] = mask[t] ? value[t] : std::numeric_limits<A>::quiet_NaN();
        real_action[t] = action[t] & mask[t];
      }
      action = real_action;
    }
    const A limit = static_cast<A>(threshold);
#pragma omp simd
    for (int64_t t = 0; t < length; ++t) {
      over[t] = value[t] > limit;
    }
    std::fill_n(seeds, length, false);
    int64_t begin = 0;
    bool after_action = false;
    while (true) {
      const int64_t end = find_true(action + begin, action + length) - action;
      const bool before_action = end < length;
      mark_gap(begin, end, after_action, before_action, outer_argmax, mask, seeds);
      if (!before_action) {
        return;
      }
      begin = end + 1;
      after_action = true;
    }
  }

 private:
  void mark_gap(
      int64_t begin, int64_t end, bool after_action, bool before_action, bool outer_argmax, const bool* mask,
      bool* seeds) const {
    const bool outer = after_action != before_action;
    int64_t first = find_true(over_.get() + begin, over_.get() + end) - over_.get(), last = end - 1;
    if (first == end) {
      const int64_t best = outer && !outer_argmax ? end : argmax(value_.get(), begin, end);
      if (best < end) {
        seeds[best] = true;
      }
      return;
    }
    if (outer && before_action) {
      first = begin;
    }
    if (!outer || before_action) {
      while (!over_[last]) {
        --last;
      }
    }
    for (int64_t t = first; t <= last; ++t) {
      seeds[t] = mask == nullptr || mask[t];
    }
  }

  std::unique_ptr<A[]> value_;
  std::unique_ptr<bool[]> over_, action_;
};

}  // namespace

template <typename T>
void background_seeds(
    const BackgroundSeeds& call, const T* background, const bool* action, bool* seeds, int64_t begin, int64_t end) {
  using A = std::conditional_t<std::is_same_v<T, double>, double, float>;
  // The comparison is made in the dtype of the probabilities, as PyTorch makes it.
  const T threshold = static_cast<T>(call.threshold);
  Row<A> row(call.width);
  for (int64_t n = begin; n < end; ++n) {
    const int64_t level = n % call.levels, first = n / call.levels * call.width + call.level_begin[level];
    row.mark(
        background + first, action + first, call.mask == nullptr ? nullptr : call.mask + first, seeds + first,
        call.level_begin[level + 1] - call.level_begin[level], threshold, call.outer_argmax);
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
