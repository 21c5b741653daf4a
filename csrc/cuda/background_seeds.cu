// Background seeds. A warp walks over one (video, level) row, 32 snippets at a time, once in each direction. In a gap,
// a snippet is a seed if a snippet over the threshold stands at or before it, and one at or after it; before the first
// action the second condition is enough, after the last one the first. The walk forward writes the first condition, and
// marks the most probable snippet of a gap that has none over the threshold; the walk back adds the second.
// No memory but the result's, no synchronisation: a row belongs to one warp, a snippet's byte to one lane.

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "cuda/background_seeds.h"
#include "cuda/platform.h"

namespace potloc::cuda {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

constexpr int kWarpsPerBlock = 4;
constexpr int kAhead = 4;  // tiles that are read at a time: a walk lasts as long as its loads, one after the other
constexpr int64_t kGroup = kAhead * kWarp;
constexpr unsigned char kMarked = 2;  // the most probable snippet of a gap without any over the threshold

// The highest value of the lanes in `lanes`, and the first index that has it; -1 where all are NaN.
template <typename T>
struct Best {
  T value;
  int64_t index;

  __device__ bool beats(const Best& other) const {
    return index >= 0 && (other.index < 0 || value > other.value || (value == other.value && index < other.index));
  }
};

template <typename T>
__device__ Best<T> best_of_warp(Best<T> best) {
  for (int bits = kWarp / 2; bits > 0; bits /= 2) {
    const Best<T> other{__shfl_xor_sync(kAllLanes, best.value, bits), __shfl_xor_sync(kAllLanes, best.index, bits)};
    best = other.beats(best) ? other : best;
  }
  return best;
}

// The bits from lane `first` up to, but not with, lane `last`.
__device__ unsigned bits_between(int first, int last) {
  const unsigned below = last >= kWarp ? kAllLanes : (1u << last) - 1;
  return first >= kWarp ? 0 : below & ~((1u << first) - 1);
}

template <typename T>
__global__ void __launch_bounds__(kWarpsPerBlock* kWarp)
    seeds_kernel(BackgroundSeeds call, const T* background, const bool* action, bool* seeds) {
  using A = std::conditional_t<std::is_same_v<T, double>, double, float>;
  const int lane = threadIdx.x % kWarp;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarp;
  if (row >= call.videos * call.levels) {
    return;
  }
  const int level = static_cast<int>(row % call.levels);
  const int64_t offset = row / call.levels * call.width + call.level_begin[level];
  const int64_t length = call.level_begin[level + 1] - call.level_begin[level];
  const A threshold = static_cast<A>(static_cast<T>(call.threshold));
  auto* marks = reinterpret_cast<unsigned char*>(seeds + offset);
  // What a lane sees of kAhead tiles, from `first` on.
  struct Snippets {
    bool valid[kAhead], acts[kAhead];
    A value[kAhead];
  };
  const auto read = [&](int64_t first) {
    Snippets snippets;
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int64_t t = first + i * kWarp + lane;
      const bool inside = t < length;
      snippets.valid[i] = inside && (call.mask == nullptr || call.mask[offset + t]);
      snippets.acts[i] = inside && action[offset + t] && snippets.valid[i];
      snippets.value[i] = inside ? static_cast<A>(background[offset + t]) : A(0);
    }
    return snippets;
  };

  int64_t first_action = length, last_action = -1;
  bool over_before = false;  // in the gap that this tile begins in
  Best<A> best{A(0), -1};    // likewise
  const auto close_gap = [&](bool outer) {
    if (!over_before && best.index >= 0 && (!outer || call.outer_argmax) && best.index % kWarp == lane) {
      marks[best.index] = kMarked;
    }
  };
  for (int64_t first = 0; first < length; first += kGroup) {
    const Snippets snippets = read(first);
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int64_t tile = first + i * kWarp, t = tile + lane;
      const bool valid = snippets.valid[i], acts = snippets.acts[i];
      const A value = snippets.value[i];
      const unsigned actions = __ballot_sync(kAllLanes, acts);
      const unsigned over = __ballot_sync(kAllLanes, valid && !acts && value > threshold);
      if (t < length) {
        const unsigned earlier = actions & bits_between(0, lane);
        const int gap = earlier == 0 ? 0 : kWarp - __clz(static_cast<int>(earlier));
        marks[t] = (over & bits_between(gap, lane + 1)) != 0 || (earlier == 0 && over_before);
      }
      int begin = 0;
      for (unsigned left = actions;; left &= left - 1) {
        const int end = left == 0 ? kWarp : __ffs(static_cast<int>(left)) - 1;
        over_before |= (over & bits_between(begin, end)) != 0;
        if (!over_before) {
          const bool mine = lane >= begin && lane < end && valid && value == value;
          const Best<A> found = best_of_warp(Best<A>{value, mine ? t : -1});
          best = found.beats(best) ? found : best;
        }
        if (left == 0) {
          break;
        }
        close_gap(last_action < 0);
        first_action = last_action < 0 ? tile + end : first_action;
        last_action = tile + end;
        over_before = false;
        best = {A(0), -1};
        begin = end + 1;
      }
    }
  }
  close_gap(last_action >= 0);

  bool over_after = false;
  for (int64_t first = (length - 1) / kGroup * kGroup; first >= 0; first -= kGroup) {
    const Snippets snippets = read(first);
    unsigned char marked[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int64_t t = first + i * kWarp + lane;
      marked[i] = t < length ? marks[t] : 0;
    }
#pragma unroll
    for (int i = kAhead - 1; i >= 0; --i) {
      const int64_t t = first + i * kWarp + lane;
      const bool valid = snippets.valid[i], acts = snippets.acts[i];
      const unsigned actions = __ballot_sync(kAllLanes, acts);
      const unsigned over = __ballot_sync(kAllLanes, valid && !acts && snippets.value[i] > threshold);
      const unsigned later = actions & bits_between(lane + 1, kWarp);
      const int gap = later == 0 ? kWarp : __ffs(static_cast<int>(later)) - 1;
      if (t < length) {
        const bool before = marked[i] == 1;
        const bool after = (over & bits_between(lane, gap)) != 0 || (later == 0 && over_after);
        const bool leading = t < first_action && last_action >= 0, trailing = t > last_action && last_action >= 0;
        const bool seed = leading ? after : trailing ? before : before && after;
        marks[t] = valid && !acts && (seed || marked[i] == kMarked);
      }
      const int end = actions == 0 ? kWarp : __ffs(static_cast<int>(actions)) - 1;
      over_after = (over & bits_between(0, end)) != 0 || (actions == 0 && over_after);
    }
  }
}

}  // namespace

template <typename T>
void background_seeds(
    const BackgroundSeeds& call, const T* background, const bool* action, bool* seeds, Stream stream) {
  const Grid grid{
      blocks_for(call.videos * call.levels, kWarpsPerBlock), kWarpsPerBlock * kWarp, 0,
      static_cast<cudaStream_t>(stream)};
  launch("background_seeds", seeds_kernel<T>, grid, call, background, action, seeds);
}

#define POTLOC_INSTANTIATE(T) \
  template void background_seeds<T>(const BackgroundSeeds&, const T*, const bool*, bool*, Stream);
POTLOC_INSTANTIATE(float)
POTLOC_INSTANTIATE(double)
POTLOC_INSTANTIATE(BFloat16)
POTLOC_INSTANTIATE(Half)

}  // namespace potloc::cuda
