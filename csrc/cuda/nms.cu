// Non-maximum suppression on time segments, in double. A stable sort by start and then by group makes neighbours of
// those that can meet: tIoU >= t asks that the starts are at most (1 - t) / t * length apart, and any overlap asks that
// one starts within the other. A block has a group, and each 32 neighbours in it a winner: the highest score, the
// lowest index among equals. Hard: a step keeps every winner that no winner within its reach beats, for it would be
// kept in any case, and takes out what is like it; what is kept is sorted in the end. Soft: a step keeps the best of
// all winners and lowers what is like it. Only those 32 are played again in which something changed. Scores are keys,
// integers in the same order, 0 for what is out. Small groups lie in shared memory; large ones stay in global memory
// and have more threads. The rest is a thread a segment; votes are summed in order, so that they have the CPU's very
// bits (no floating-point contraction). Memory: 65 bytes a segment, 73 in float64, and what the sort takes.

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "cuda/memory.h"
#include "cuda/nms.h"
#include "cuda/platform.h"
#include "cuda/scan.h"
#include "cuda/sort.h"

namespace potloc::cuda {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

constexpr const char* kOp = "nms";
constexpr int kThreads = 256;  // of the kernels with a thread a segment
constexpr uint64_t kSign = uint64_t{1} << 63;

template <typename T>
using Wide = std::conditional_t<std::is_same_v<T, double>, double, float>;

// One that has a bound that is not finite is [inf, inf): it stands last and overlaps nothing.
template <typename B>
struct alignas(2 * sizeof(B)) Bounds {
  B start, end;
};

template <typename To, typename From>
__device__ To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

// Ascends with the value; 0 and -0 are equal.
__device__ uint32_t ascending_key(float value) {
  const auto bits = bits_as<uint32_t>(value + 0.0f);
  return bits >> 31 ? ~bits : bits | 1u << 31;
}

__device__ uint64_t ascending_key(double value) {
  const auto bits = bits_as<uint64_t>(value + 0.0);
  return bits & kSign ? ~bits : bits | kSign;
}

// Scores that are lowered are never negative, so their bits are in order.
__device__ uint64_t lowered_key(const Nms& rules, double score) {
  return score >= rules.min_score ? bits_as<uint64_t>(score + 0.0) + 1 : 0;
}

__device__ double lowered_score(uint64_t key) {
  return bits_as<double>(key - 1);
}

// Of what is left at first: all, NaN last, where nothing is lowered.
__device__ uint64_t score_key(const Nms& rules, double score) {
  if (rules.method != NmsMethod::hard) {
    return lowered_key(rules, score);
  }
  return score == score ? ascending_key(score) : 1;
}

template <typename T>
__device__ Bounds<Wide<T>> bounds_of(const T* segments, int64_t i) {
  using B = Wide<T>;
  const B start = static_cast<B>(segments[2 * i]), end = static_cast<B>(segments[2 * i + 1]);
  const B infinity = std::numeric_limits<B>::infinity();
  return start - start == 0 && end - end == 0 ? Bounds<B>{start, end} : Bounds<B>{infinity, infinity};
}

template <typename B>
__device__ double length_of(Bounds<B> a, double offset) {
  return static_cast<double>(a.end) - static_cast<double>(a.start) + offset;
}

template <typename B>
__device__ double tiou(Bounds<B> a, Bounds<B> b, double offset) {
  const double intersection =
      static_cast<double>(min(a.end, b.end)) - static_cast<double>(max(a.start, b.start)) + offset;
  if (!(intersection > 0)) {
    return 0;
  }
  return intersection / (length_of(a, offset) + length_of(b, offset) - intersection);
}

// Starts.
struct Window {
  double from, to;
};

template <typename B>
__device__ Window widened(double from, double to, Bounds<B> a, double offset) {
  // The bounds are rounded, and so is tIoU: look a little further.
  const double slack =
      1e-9 * (fabs(from) + fabs(to) + fabs(static_cast<double>(a.start)) + fabs(static_cast<double>(a.end)) + offset);
  return {from - slack, to + slack};
}

// Of all that may have a tIoU of at least `threshold` with `a`.
template <typename B>
__device__ Window alike(Bounds<B> a, double threshold, double offset) {
  const double reach = (1 - threshold) / threshold * length_of(a, offset);
  return widened(a.start - reach, a.start + reach, a, offset);
}

// Of all that may overlap `a`, where none is longer than `longest`.
template <typename B>
__device__ Window overlapping(Bounds<B> a, double longest, double offset) {
  return widened(a.start - longest, a.end + offset, a, offset);
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    start_keys_kernel(int64_t size, const T* segments, uint64_t* keys, uint32_t* index) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < size) {
    keys[i] = ascending_key(bounds_of(segments, i).start);
    index[i] = static_cast<uint32_t>(i);
  }
}

__global__ void __launch_bounds__(kThreads)
    group_keys_kernel(int64_t size, const int64_t* groups, const uint32_t* index, uint64_t* keys) {
  const int64_t p = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (p < size) {
    keys[p] = static_cast<uint64_t>(groups[index[p]]) ^ kSign;
  }
}

// Brings bounds and keys into order, and marks the first position of each group. No group has any kept yet.
template <typename T>
__global__ void __launch_bounds__(kThreads) gather_kernel(
    Nms rules, const T* segments, const T* scores, const uint32_t* index, Bounds<Wide<T>>* bounds, uint64_t* keys,
    int64_t* first, int64_t* count) {
  const int64_t p = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (p < rules.size) {
    const uint32_t i = index[p];
    bounds[p] = bounds_of(segments, i);
    keys[p] = score_key(rules, static_cast<Wide<T>>(scores[i]));
    first[p] = p == 0 || (rules.groups != nullptr && rules.groups[i] != rules.groups[index[p - 1]]);
    count[p] = 0;
  }
}

// `begin` has one more than there may be groups.
__global__ void __launch_bounds__(kThreads)
    group_begin_kernel(int64_t size, const int64_t* group_after, int64_t* begin) {
  const int64_t p = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (p < size) {
    if (p == 0 || group_after[p] != group_after[p - 1]) {
      begin[group_after[p] - 1] = p;
    }
    if (p == size - 1) {
      begin[group_after[p]] = size;
    }
  }
}

// The best of some members, out where its key is 0; its place is that in the group.
struct alignas(16) Winner {
  uint64_t key;
  uint32_t index, place;
};

__device__ bool beats(const Winner& a, const Winner& b) {
  return a.key > b.key || (a.key == b.key && a.index < b.index);
}

__device__ Winner best_of_warp(Winner mine) {
  const auto low = static_cast<unsigned>(mine.key), high = static_cast<unsigned>(mine.key >> 32);
  const unsigned best_high = __reduce_max_sync(kAllLanes, high);
  const unsigned best_low = __reduce_max_sync(kAllLanes, high == best_high ? low : 0);
  const bool best = high == best_high && low == best_low;
  const unsigned index = __reduce_min_sync(kAllLanes, best ? mine.index : ~0u);
  const int lane = __ffs(static_cast<int>(__ballot_sync(kAllLanes, best && mine.index == index))) - 1;
  return {static_cast<uint64_t>(best_high) << 32 | best_low, index, __shfl_sync(kAllLanes, mine.place, lane)};
}

// All groups, by position.
template <typename B>
struct Groups {
  int64_t size;
  const Bounds<B>* bounds;
  const uint32_t* index;
  const int64_t *after, *begin;
  uint64_t* keys;
  Winner* winners;    // of those over 32 members: from their first position / 16 on
  unsigned* leaving;  // likewise
  int64_t* count;
  uint32_t* kept;
  uint64_t* kept_key;
};

// From `first` up to, but not with, `last`.
struct Range {
  int first, last;
};

// The members of one group, in the order of starts.
template <typename B>
struct Members {
  int size;
  const Bounds<B>* bounds;
  const uint32_t* index;
  uint64_t* keys;
  Winner* winners;    // of each 32 members
  unsigned* leaving;  // bits of each 32 members: what the present step takes out

  __device__ int warps() const {
    return (size + kWarp - 1) / kWarp;
  }

  // By a warp: the number of its 32s that begin before this start, or at it where `with` is true.
  __device__ int begin_before(double start, bool with) const {
    const int lane = threadIdx.x % kWarp;
    int low = 0, high = warps();
    while (low < high) {
      const int step = (high - low + kWarp - 1) / kWarp, at = low + lane * step;
      const double begin = at < high ? static_cast<double>(bounds[at * kWarp].start) : 0;
      const bool before = at < high && (begin < start || (with && begin == start));
      const int count = __popc(__ballot_sync(kAllLanes, before));
      high = min(high, low + count * step);
      low = count == 0 ? high : low + (count - 1) * step + 1;
    }
    return low;
  }

  // By a warp: finds the winner of members 32 * w, ..., each lane with the key of its own, 0 beyond the last. All lanes
  // have read what was there before, and see the winner afterwards.
  __device__ void play(int w, uint64_t key) const {
    const int lane = threadIdx.x % kWarp, i = w * kWarp + lane;
    const Winner best = best_of_warp({key, i < size ? index[i] : ~0u, static_cast<uint32_t>(i)});
    __syncwarp();
    if (lane == 0) {
      winners[w] = best;
    }
    __syncwarp();
  }

  // By a warp: the 32s that hold all which member `place` can take out or lower.
  __device__ Range in_reach(const Nms& rules, uint32_t place, double longest) const {
    const Bounds<B> own = bounds[place];
    const int w = static_cast<int>(place / kWarp);
    if (own.start == std::numeric_limits<B>::infinity()) {
      return {w, w + 1};
    }
    const Window window = rules.method == NmsMethod::gaussian ? overlapping(own, longest, rules.offset)
                                                              : alike(own, rules.iou_threshold, rules.offset);
    return {min(w, max(begin_before(window.from, false) - 1, 0)), max(w + 1, begin_before(window.to, true))};
  }

  // By a warp: marks `place` and what has a tIoU of at least the threshold with it, among members 32 * w, ...
  __device__ void mark(const Nms& rules, uint32_t place, int w) const {
    const int i = w * kWarp + threadIdx.x % kWarp;
    const bool leaves =
        winners[w].key != 0 && i < size && keys[i] != 0 &&
        (i == static_cast<int>(place) || tiou(bounds[place], bounds[i], rules.offset) >= rules.iou_threshold);
    const unsigned bits = __ballot_sync(kAllLanes, leaves);
    if (threadIdx.x % kWarp == 0 && bits != 0) {
      atomicOr(&leaving[w], bits);
    }
  }

  // By a warp: takes out what is marked among members 32 * w, ..., and finds the winner.
  __device__ void take_out(int w) const {
    const int lane = threadIdx.x % kWarp, i = w * kWarp + lane;
    const bool leaves = (leaving[w] >> lane & 1) != 0;
    if (leaves) {
      keys[i] = 0;
    }
    play(w, i < size && !leaves ? keys[i] : 0);
    if (lane == 0) {
      leaving[w] = 0;
    }
  }

  // By a warp: takes `place` out of members 32 * w, ..., lowers the others, and finds the winner.
  __device__ void lower(const Nms& rules, uint32_t place, int w) const {
    if (winners[w].key == 0) {
      return;
    }
    const int i = w * kWarp + threadIdx.x % kWarp;
    const uint64_t before = i < size ? keys[i] : 0;
    uint64_t after = before;
    if (i == static_cast<int>(place)) {
      after = 0;
    } else if (before != 0) {
      const double ratio = tiou(bounds[place], bounds[i], rules.offset), score = lowered_score(before);
      if (rules.method == NmsMethod::linear ? ratio >= rules.iou_threshold : ratio > 0) {
        const double factor = rules.method == NmsMethod::linear ? 1 - ratio : exp(-ratio * ratio / rules.sigma);
        after = lowered_key(rules, score * factor);
      }
    }
    if (__any_sync(kAllLanes, before != after)) {
      if (before != after) {
        keys[i] = after;
      }
      play(w, after);
    }
  }
};

// Room for a group of at most kMembers in shared memory. Where that is 0, groups of any size stay in global memory.
template <typename B, int kMembers>
struct alignas(16) Room {
  Winner winners[kMembers / kWarp];
  Bounds<B> bounds[kMembers];
  uint64_t keys[kMembers];
  uint32_t index[kMembers];
  unsigned leaving[kMembers / kWarp];
};

template <typename B>
struct Room<B, 0> {};

// By a block: calls `suppress(members, begin)` for its share of the groups with more than `above` members that there is
// room for, and notes how many it says are kept.
template <typename B, int kMembers, typename F>
__device__ void for_each_group(const Groups<B>& groups, int above, Room<B, kMembers>& room, F suppress) {
  const int t = threadIdx.x, lane = t % kWarp, block = blockDim.x;
  const int64_t group_count = groups.after[groups.size - 1];
  for (int64_t group = blockIdx.x; group < group_count; group += gridDim.x) {
    const int64_t begin = groups.begin[group];
    const int size = static_cast<int>(groups.begin[group + 1] - begin);
    if (size <= above || (kMembers > 0 && size > kMembers)) {
      continue;
    }
    Members<B> members;
    if constexpr (kMembers > 0) {
      for (int i = t; i < size; i += block) {
        room.bounds[i] = groups.bounds[begin + i];
        room.index[i] = groups.index[begin + i];
        room.keys[i] = groups.keys[begin + i];
      }
      members = {size, room.bounds, room.index, room.keys, room.winners, room.leaving};
      __syncthreads();
    } else {
      const int64_t first = begin / (kWarp / 2);
      members = {size,
                 groups.bounds + begin,
                 groups.index + begin,
                 groups.keys + begin,
                 groups.winners + first,
                 groups.leaving + first};
    }
    for (int w = t / kWarp; w < members.warps(); w += block / kWarp) {
      members.play(w, w * kWarp + lane < size ? members.keys[w * kWarp + lane] : 0);
      if (lane == 0) {
        members.leaving[w] = 0;
      }
    }
    __syncthreads();
    const int64_t count = suppress(members, begin);
    if (t == 0) {
      groups.count[group] = count;
    }
    __syncthreads();
  }
}

template <typename B, int kMembers>
struct HardMemory {
  Room<B, kMembers> room;
  unsigned kept;
};

// Each step keeps all winners that no winner within their reach beats, for they would be kept in any case. What is kept
// is then sorted.
template <typename B, int kMembers, int kBlock>
__global__ void __launch_bounds__(kBlock, 1) hard_kernel(Nms rules, Groups<B> groups, int above) {
  constexpr int kWarps = kBlock / kWarp;
  const int t = threadIdx.x, warp = t / kWarp, lane = t % kWarp;
  auto& shared = *shared_memory<HardMemory<B, kMembers>>();
  for_each_group(groups, above, shared.room, [&](const Members<B>& members, int64_t begin) {
    uint32_t* kept = groups.kept + begin;
    uint64_t* kept_key = groups.kept_key + begin;
    const Winner* winners = members.winners;
    const int warps = members.warps();
    if (t == 0) {
      shared.kept = 0;
    }
    __syncthreads();
    unsigned before = 0, after = 0;
    do {
      before = after;
      for (int base = 0; base < warps; base += kBlock) {
        const int w = base + lane * kWarps + warp;
        const auto loses_to = [&](int other) {
          return other >= 0 && other < warps && beats(winners[other], winners[w]);
        };
        const bool candidate = w < warps && winners[w].key != 0 && !loses_to(w - 1) && !loses_to(w + 1);
        for (unsigned left = __ballot_sync(kAllLanes, candidate); left != 0; left &= left - 1) {
          const Winner own = winners[base + (__ffs(static_cast<int>(left)) - 1) * kWarps + warp];
          const Range range = members.in_reach(rules, own.place, 0);
          bool beaten = false;
          for (int other = range.first + lane; other < range.last; other += kWarp) {
            beaten |= beats(winners[other], own);
          }
          if (__any_sync(kAllLanes, beaten)) {
            continue;
          }
          for (int other = range.first; other < range.last; ++other) {
            members.mark(rules, own.place, other);
          }
          if (lane == 0) {
            const unsigned at = atomicAdd(&shared.kept, 1u);
            kept[at] = own.place;
            kept_key[at] = own.key;
          }
        }
      }
      __syncthreads();
      after = shared.kept;
      for (int base = 0; base < warps; base += kBlock) {
        const int own = base + lane * kWarps + warp;
        for (unsigned left = __ballot_sync(kAllLanes, own < warps && members.leaving[own] != 0); left != 0;
             left &= left - 1) {
          members.take_out(base + (__ffs(static_cast<int>(left)) - 1) * kWarps + warp);
        }
      }
      __syncthreads();
    } while (after > before);

    // A bitonic network in which each comparison puts the better one first: what is beyond the end would stay there.
    for (unsigned run = 2; run / 2 < after; run *= 2) {
      for (unsigned distance = run - 1; distance > 0; distance = distance == run - 1 ? run / 4 : distance / 2) {
        for (unsigned i = t; i < after; i += kBlock) {
          const unsigned j = i ^ distance;
          if (j > i && j < after) {
            const Winner a{kept_key[i], members.index[kept[i]], kept[i]};
            const Winner b{kept_key[j], members.index[kept[j]], kept[j]};
            if (beats(b, a)) {
              kept_key[i] = b.key;
              kept[i] = b.place;
              kept_key[j] = a.key;
              kept[j] = a.place;
            }
          }
        }
        __syncthreads();
      }
    }
    return min(static_cast<int64_t>(after), rules.max_per_group);
  });
}

template <typename B, int kMembers, int kBlock>
struct SoftMemory {
  Room<B, kMembers> room;
  Winner best[kBlock / kWarp];  // of each warp
  unsigned long long longest;   // the bits of a length
};

// Each step keeps the best and lowers what overlaps it.
template <typename B, int kMembers, int kBlock>
__global__ void __launch_bounds__(kBlock, 1) soft_kernel(Nms rules, Groups<B> groups, int above) {
  constexpr int kWarps = kBlock / kWarp;
  const int t = threadIdx.x, warp = t / kWarp, lane = t % kWarp;
  auto& shared = *shared_memory<SoftMemory<B, kMembers, kBlock>>();
  for_each_group(groups, above, shared.room, [&](const Members<B>& members, int64_t begin) {
    if (t == 0) {
      shared.longest = 0;
    }
    __syncthreads();
    double longest = 0;
    for (int i = t; i < members.size; i += kBlock) {
      const double length = length_of(members.bounds[i], rules.offset);
      longest = length > longest ? length : longest;  // not where it is NaN
    }
    atomicMax(&shared.longest, bits_as<unsigned long long>(longest));
    __syncthreads();
    longest = bits_as<double>(shared.longest);

    int64_t step = 0;
    for (; step < rules.max_per_group; ++step) {
      Winner best{0, ~0u, 0};
      for (int w = t; w < members.warps(); w += kBlock) {
        const Winner other = members.winners[w];
        best = beats(other, best) ? other : best;
      }
      best = best_of_warp(best);
      if (lane == 0) {
        shared.best[warp] = best;
      }
      __syncthreads();
      best = best_of_warp(lane < kWarps ? shared.best[lane] : Winner{0, ~0u, 0});
      if (best.key == 0) {
        break;
      }
      if (t == 0) {
        groups.kept[begin + step] = best.place;
        groups.kept_key[begin + step] = best.key;
      }
      const Range range = members.in_reach(rules, best.place, longest);
      for (int w = range.first + warp; w < range.last; w += kWarps) {
        members.lower(rules, best.place, w);
      }
      __syncthreads();
    }
    return step;
  });
}

// The mean of the segments with a tIoU of at least `voting` with `a`, weighted by their scores; `segment` where there
// is no weight.
template <typename T>
__device__ void vote(
    const Nms& rules, const Bounds<Wide<T>>* bounds, const uint32_t* index, const T* scores, int size, int place,
    T* segment) {
  const auto own = bounds[place];
  const Window window = alike(own, rules.voting, rules.offset);
  int low = 0, high = size;
  while (low < high) {
    const int middle = low + (high - low) / 2;
    if (bounds[middle].start < window.from) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  double weights = 0, start = 0, end = 0;
  for (int i = low; i < size && bounds[i].start <= window.to; ++i) {
    const double score = static_cast<Wide<T>>(scores[index[i]]);
    if (score > 0 && score - score == 0 && tiou(own, bounds[i], rules.offset) >= rules.voting) {
      weights += score;
      start += score * bounds[i].start;
      end += score * bounds[i].end;
    }
  }
  if (weights > 0) {
    segment[0] = static_cast<T>(start / weights);
    segment[1] = static_cast<T>(end / weights);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) write_kernel(
    Nms rules, const T* segments, const T* scores, KeptSegments found, T* kept_segments, T* kept_scores,
    int64_t* keep) {
  const int64_t p = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (p >= rules.size) {
    return;
  }
  const int64_t group = found.group_after[p] - 1, begin = found.group_begin[group], rank = p - begin;
  if (rank >= found.count[group]) {
    return;
  }
  const int64_t out = found.count_up_to[group] - found.count[group] + rank;
  const uint32_t place = found.kept[p], i = found.index[begin + place];
  keep[out] = i;
  kept_scores[out] = rules.method == NmsMethod::hard ? scores[i] : static_cast<T>(lowered_score(found.kept_key[p]));
  T segment[2] = {segments[2 * static_cast<int64_t>(i)], segments[2 * static_cast<int64_t>(i) + 1]};
  if (rules.voting > 0) {
    const auto* bounds = static_cast<const Bounds<Wide<T>>*>(found.bounds) + begin;
    const int size = static_cast<int>(found.group_begin[group + 1] - begin);
    vote(rules, bounds, found.index + begin, scores, size, static_cast<int>(place), segment);
  }
  kept_segments[2 * out] = segment[0];
  kept_segments[2 * out + 1] = segment[1];
}

}  // namespace

template <typename T>
KeptSegments nms(const Nms& rules, const T* segments, const T* scores, const Workspace& workspace, Stream stream) {
  using B = Wide<T>;
  auto* const on = static_cast<cudaStream_t>(stream);
  const int64_t size = rules.size;
  const Grid each{blocks_for(size, kThreads), kThreads, 0, on};

  auto* keys = take<uint64_t>(workspace, size);
  auto* other_keys = take<uint64_t>(workspace, size);
  auto* index = take<uint32_t>(workspace, size);
  auto* other_index = take<uint32_t>(workspace, size);
  launch(kOp, start_keys_kernel<T>, each, size, segments, keys, index);
  const auto sort = [&](int bits) {
    sort_pairs(kOp, keys, other_keys, index, other_index, static_cast<int>(size), bits, workspace, on);
  };
  sort(8 * sizeof(B));
  if (rules.groups != nullptr) {
    launch(kOp, group_keys_kernel, each, size, rules.groups, index, keys);
    sort(64);
  }

  auto* bounds = take<Bounds<B>>(workspace, size);
  auto* group_after = take<int64_t>(workspace, size);
  auto* group_begin = take<int64_t>(workspace, size + 1);
  auto* count = take<int64_t>(workspace, size);
  launch(kOp, gather_kernel<T>, each, rules, segments, scores, index, bounds, keys, group_after, count);
  sum_up(kOp, group_after, group_after, static_cast<int>(size), workspace, on);
  launch(kOp, group_begin_kernel, each, size, group_after, group_begin);

  const int64_t warps = size / (kWarp / 2) + 1;
  auto* winners = take<Winner>(workspace, warps);
  auto* leaving = take<unsigned>(workspace, warps);
  const Groups<B> groups{size,    bounds,  index, group_after, group_begin, keys,
                         winners, leaving, count, other_index, other_keys};
  const auto suppress = [&](auto* kernel, unsigned threads, size_t shared_bytes, int above) {
    // As many blocks as there may be groups of that size, or an 8th of that where they may be tiny; or as keep the
    // device busy.
    const auto blocks = static_cast<unsigned>(std::min((size + 7) / std::max(above + 1, 8), int64_t{8192}));
    if (blocks > 0) {
      launch(kOp, kernel, Grid{blocks, threads, shared_bytes, on}, rules, groups, above);
    }
  };
  constexpr int kSmall = 512, kMiddle = 2048, kFew = 128, kMany = 1024;
  if (rules.method == NmsMethod::hard) {
    suppress(hard_kernel<B, kSmall, kFew>, kFew, sizeof(HardMemory<B, kSmall>), 0);
    suppress(hard_kernel<B, kMiddle, kFew>, kFew, sizeof(HardMemory<B, kMiddle>), kSmall);
    suppress(hard_kernel<B, 0, kMany>, kMany, sizeof(HardMemory<B, 0>), kMiddle);
  } else {
    suppress(soft_kernel<B, kSmall, kFew>, kFew, sizeof(SoftMemory<B, kSmall, kFew>), 0);
    suppress(soft_kernel<B, kMiddle, kFew>, kFew, sizeof(SoftMemory<B, kMiddle, kFew>), kSmall);
    suppress(soft_kernel<B, 0, kMany>, kMany, sizeof(SoftMemory<B, 0, kMany>), kMiddle);
  }

  auto* count_up_to = take<int64_t>(workspace, size);
  sum_up(kOp, count, count_up_to, static_cast<int>(size), workspace, on);
  const int64_t total = read_back<1>(kOp, count_up_to + size - 1, on)[0];
  return {total, bounds, index, group_after, group_begin, count, count_up_to, groups.kept, groups.kept_key};
}

template <typename T>
void write_kept(
    const Nms& rules, const T* segments, const T* scores, const KeptSegments& found, T* kept_segments, T* kept_scores,
    int64_t* keep, Stream stream) {
  const Grid grid{blocks_for(rules.size, kThreads), kThreads, 0, static_cast<cudaStream_t>(stream)};
  launch(kOp, write_kernel<T>, grid, rules, segments, scores, found, kept_segments, kept_scores, keep);
}

#define POTLOC_INSTANTIATE(T)                                                             \
  template KeptSegments nms<T>(const Nms&, const T*, const T*, const Workspace&, Stream); \
  template void write_kept<T>(const Nms&, const T*, const T*, const KeptSegments&, T*, T*, int64_t*, Stream);
POTLOC_INSTANTIATE(float)
POTLOC_INSTANTIATE(double)
POTLOC_INSTANTIATE(BFloat16)
POTLOC_INSTANTIATE(Half)

}  // namespace potloc::cuda
