// Non-maximum suppression on time segments, group by group, in double. The members of a group are sorted by start, so
// that those which a segment can suppress are neighbours: tIoU >= t asks that the starts are at most
// (1 - t) / t * (the shorter length) apart, and any overlap asks that one starts within the other. Hard: in the order
// of scores, each survivor marks its neighbours, several in one vector. Soft: a tournament knows the best present
// score; only the blocks of it in which a score fell are played again, and what is out is swept away whenever it is
// half. All sorting is by radix, stable. Built with floating-point contraction off, so that every instruction set
// decides the same.

#include "cpu/nms.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>
#include <type_traits>
#include <utility>
#include <vector>

namespace potloc::cpu::POTLOC_CAPABILITY {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

template <typename Key>
struct Item {
  Key key;
  Key index;
};

template <typename Key>
using Items = std::vector<Item<Key>>;

// Sorts by key; equal keys stay in order.
template <typename Key>
void radix_sort(Items<Key>& items, Items<Key>& scratch) {
  constexpr size_t kFew = 64, kDigits = sizeof(Key);
  const size_t size = items.size();
  if (size < kFew) {
    std::stable_sort(items.begin(), items.end(), [](const auto& a, const auto& b) { return a.key < b.key; });
    return;
  }
  std::array<std::array<size_t, 256>, kDigits> counts{};
  for (const auto& item : items) {
    for (size_t digit = 0; digit < kDigits; ++digit) {
      ++counts[digit][item.key >> (8 * digit) & 255];
    }
  }
  scratch.resize(size);
  for (size_t digit = 0; digit < kDigits; ++digit) {
    auto& place = counts[digit];
    if (place[items[0].key >> (8 * digit) & 255] == size) {
      continue;  // all have the same
    }
    std::exclusive_scan(place.begin(), place.end(), place.begin(), size_t{0});
    for (const auto& item : items) {
      scratch[place[item.key >> (8 * digit) & 255]++] = item;
    }
    items.swap(scratch);
  }
}

template <typename T>
using Wide = std::conditional_t<std::is_same_v<T, double>, double, float>;
template <typename T>
using KeyOf = std::conditional_t<std::is_same_v<T, double>, uint64_t, uint32_t>;

// Ascends with the value; 0 and -0 are equal.
template <typename T>
KeyOf<T> ascending_key(T value) {
  constexpr KeyOf<T> kSign = KeyOf<T>{1} << (8 * sizeof(KeyOf<T>) - 1);
  const auto bits = std::bit_cast<KeyOf<T>>(static_cast<Wide<T>>(value) + Wide<T>{0});
  return bits & kSign ? ~bits : bits | kSign;
}

// Greater than that of any number.
template <typename T>
constexpr KeyOf<T> kLastKey = std::numeric_limits<KeyOf<T>>::max();

// Positions [first, last) in the order of starts.
struct Window {
  int64_t first, last;
};

// 0 without overlap. No branch around the division, so that a loop becomes vectors.
double tiou(double a_start, double a_end, double b_start, double b_end, double offset) {
  const double intersection = (a_end < b_end ? a_end : b_end) - (a_start < b_start ? b_start : a_start) + offset;
  const double sum = (a_end - a_start + offset) + (b_end - b_start + offset);
  const double ratio = intersection / (sum - intersection);
  return intersection > 0 ? ratio : 0;
}

// Bounds in the order of starts. A segment with a bound that is not finite stands last, at infinity: it overlaps
// nothing.
struct Timeline {
  double offset = 0, longest = 0;
  std::vector<double> start, end;

  double tiou(int64_t a, int64_t b) const {
    return potloc::cpu::POTLOC_CAPABILITY::tiou(start[a], end[a], start[b], end[b], offset);
  }

  // All that may have a tIoU of at least `threshold` with `i`.
  Window alike(int64_t i, double threshold) const {
    const double reach = (1 - threshold) / threshold * (end[i] - start[i] + offset);
    return starts_within(i, start[i] - reach, start[i] + reach);
  }

  // All that may overlap `i`.
  Window overlapping(int64_t i) const {
    return starts_within(i, start[i] - longest, end[i] + offset);
  }

 private:
  Window starts_within(int64_t i, double from, double to) const {
    // The bounds are rounded, and so is tIoU: look a little further.
    const double slack = 1e-9 * (std::abs(from) + std::abs(to) + std::abs(start[i]) + std::abs(end[i]) + offset);
    from -= slack;
    to += slack;
    // Most windows are small: strides from i that double, then halves.
    const auto size = static_cast<int64_t>(start.size());
    int64_t low = i, high = i, stride = 1;
    for (; low >= stride && start[low - stride] >= from; stride *= 2) {
      low -= stride;
    }
    for (; stride > 0; stride /= 2) {
      low -= low >= stride && start[low - stride] >= from ? stride : 0;
    }
    for (stride = 1; high + stride < size && start[high + stride] <= to; stride *= 2) {
      high += stride;
    }
    for (; stride > 0; stride /= 2) {
      high += high + stride < size && start[high + stride] <= to ? stride : 0;
    }
    return {low, high + 1};
  }
};

// The members of one group, numbered as they come.
template <typename T>
struct Group {
  int64_t size = 0;
  Timeline timeline;
  std::vector<int64_t> member, position;  // from position to member and back
  Items<KeyOf<T>> items, scratch;

  void load(const T* segments, const T* scores, const int64_t* members, int64_t count, double offset) {
    size = count;
    timeline.offset = offset;
    timeline.longest = 0;
    items.resize(size);
    // The members of a group may lie anywhere: have them fetched ahead.
    constexpr int64_t kAhead = 16;
    for (int64_t i = 0; i < size; ++i) {
      const int64_t ahead = members[std::min(i + kAhead, size - 1)];
      __builtin_prefetch(segments + 2 * ahead);
      __builtin_prefetch(scores + ahead);
      const T start = segments[2 * members[i]], end = segments[2 * members[i] + 1];
      const bool finite = std::isfinite(static_cast<Wide<T>>(start)) && std::isfinite(static_cast<Wide<T>>(end));
      items[i] = {finite ? ascending_key(start) : kLastKey<T>, static_cast<KeyOf<T>>(i)};
    }
    radix_sort(items, scratch);
    for (auto* column : {&timeline.start, &timeline.end}) {
      column->resize(size);
    }
    for (auto* column : {&member, &position}) {
      column->resize(size);
    }
    for (int64_t j = 0; j < size; ++j) {
      const auto [key, i] = items[j];
      const bool finite = key != kLastKey<T>;
      timeline.start[j] = finite ? static_cast<double>(segments[2 * members[i]]) : kInfinity;
      timeline.end[j] = finite ? static_cast<double>(segments[2 * members[i] + 1]) : kInfinity;
      timeline.longest = std::max(timeline.longest, finite ? timeline.end[j] - timeline.start[j] + offset : 0);
      member[j] = i;
      position[i] = j;
    }
  }

  // Sorts `items` by descending score, NaN last; the lowest index first among equals.
  void rank(const T* scores, const int64_t* members) {
    for (int64_t i = 0; i < size; ++i) {
      const T score = scores[members[i]];
      const bool number = !std::isnan(static_cast<Wide<T>>(score));
      items[i] = {number ? static_cast<KeyOf<T>>(~ascending_key(score)) : kLastKey<T>, static_cast<KeyOf<T>>(i)};
    }
    radix_sort(items, scratch);
  }
};

// A member that is kept, and its score.
struct Kept {
  int64_t member;
  double score;
};

// Marks what has a tIoU of at least `threshold` with segment i.
void mark_alike(const Timeline& line, int64_t i, double threshold, unsigned char* out) {
  const Window window = line.alike(i, threshold);
  const int64_t first = window.first, last = window.last;  // not bindings, which some Clang takes up in no simd loop
  const double *start = line.start.data(), *end = line.end.data();
  const double from = start[i], to = end[i], offset = line.offset;
#pragma omp simd
  for (int64_t j = first; j < last; ++j) {
    out[j] |= tiou(from, to, start[j], end[j], offset) >= threshold;
  }
}

template <typename T>
void hard_nms(const Nms& rules, Group<T>& group, const T* scores, const int64_t* members, std::vector<Kept>& kept) {
  const Timeline& line = group.timeline;
  std::vector<unsigned char> suppressed(group.size);
  group.rank(scores, members);
  for (const auto& item : group.items) {
    const auto i = static_cast<int64_t>(item.index), at = group.position[i];
    if (suppressed[at]) {
      continue;
    }
    if (static_cast<int64_t>(kept.size()) >= rules.max_per_group) {
      break;
    }
    kept.push_back({i, static_cast<double>(scores[members[i]])});
    mark_alike(line, at, rules.iou_threshold, suppressed.data());
  }
}

// The members that are still in, by start, with their present scores. Scores are never negative, so their bits, read as
// an integer, order them; what is out has -1.
class Tournament {
 public:
  template <typename T>
  Tournament(const Nms& rules, const Group<T>& group, const T* scores, const int64_t* members)
      : rules_(rules), line_(group.timeline), position_(group.position), rounds_(1) {
    rounds_[0].member = group.member;
    rounds_[0].score.resize(group.size);
    for (int64_t j = 0; j < group.size; ++j) {
      enter(j, static_cast<double>(scores[members[group.member[j]]]));
    }
    in_ = group.size - std::count(rounds_[0].score.begin(), rounds_[0].score.end(), kOut);
    start();
  }

  bool over() const {
    return in_ == 0;
  }

  // Takes out the best, the lowest member among equals, and lowers the others.
  Kept next() {
    const Kept best{rounds_.back().member[0], std::bit_cast<double>(rounds_.back().score[0])};
    const int64_t i = position_[best.member];
    leave(i);
    const auto [first, last] =
        rules_.method == NmsMethod::linear ? line_.alike(i, rules_.iou_threshold) : line_.overlapping(i);
    for (int64_t block = first / kBlock; block * kBlock < last; ++block) {
      // Without this there is no intersection, however it is rounded.
      if (block == i / kBlock || latest_[block] - line_.start[i] + line_.offset > 0) {
        for (int64_t j = std::max(first, block * kBlock); j < std::min(last, (block + 1) * kBlock); ++j) {
          lower(i, j);
        }
        play(0, block);
      }
    }
    if (2 * in_ < static_cast<int64_t>(line_.start.size())) {
      sweep();
    } else {
      play_on(first, last);
    }
    return best;
  }

 private:
  static constexpr int64_t kBlock = 32, kOut = -1;

  // The winners of the blocks of the round before.
  struct Round {
    std::vector<int64_t> score, member;
  };

  void enter(int64_t j, double score) {
    // Adding 0 makes -0 a 0.
    rounds_[0].score[j] = score >= rules_.min_score ? std::bit_cast<int64_t>(score + 0.0) : kOut;
  }

  void leave(int64_t j) {
    rounds_[0].score[j] = kOut;
    --in_;
  }

  void lower(int64_t i, int64_t j) {
    if (rounds_[0].score[j] == kOut) {
      return;
    }
    const double tiou = line_.tiou(i, j);
    const bool linear = rules_.method == NmsMethod::linear;
    if (linear ? tiou >= rules_.iou_threshold : tiou > 0) {
      const double score = std::bit_cast<double>(rounds_[0].score[j]);
      enter(j, score * (linear ? 1 - tiou : std::exp(-tiou * tiou / rules_.sigma)));
      in_ -= rounds_[0].score[j] == kOut;
    }
  }

  // Plays all rounds.
  void start() {
    const auto size = static_cast<int64_t>(line_.start.size());
    latest_.assign((size + kBlock - 1) / kBlock, -kInfinity);
    for (int64_t j = 0; j < size; ++j) {
      latest_[j / kBlock] = std::max(latest_[j / kBlock], line_.end[j]);
    }
    size_t round = 0;
    for (int64_t left = size; left > 1 || round == 0; ++round) {
      const int64_t blocks = (left + kBlock - 1) / kBlock;
      rounds_[round].score.resize(blocks * kBlock, kOut);
      rounds_[round].member.resize(blocks * kBlock);
      rounds_.resize(std::max(rounds_.size(), round + 2));
      rounds_[round + 1].score.resize(blocks);
      rounds_[round + 1].member.resize(blocks);
      left = blocks;
    }
    rounds_.resize(round + 1);
    for (int64_t block = 0; block * kBlock < size; ++block) {
      play(0, block);
    }
    play_on(0, size);
  }

  // Finds the best of a block, and the lowest member that has its score.
  void play(size_t round, int64_t block) {
    const int64_t* score = rounds_[round].score.data() + block * kBlock;
    const int64_t* member = rounds_[round].member.data() + block * kBlock;
    constexpr int64_t kNone = std::numeric_limits<int64_t>::max();
    int64_t best = kOut, lowest = kNone;
    for (int64_t j = 0; j < kBlock; ++j) {
      best = std::max(best, score[j]);
    }
    for (int64_t j = 0; j < kBlock; ++j) {
      lowest = std::min(lowest, score[j] == best ? member[j] : kNone);
    }
    rounds_[round + 1].score[block] = best;
    rounds_[round + 1].member[block] = lowest;
  }

  // The rounds after the first, for what came from the positions [first, last).
  void play_on(int64_t first, int64_t last) {
    for (size_t round = 1; round + 1 < rounds_.size(); ++round) {
      first /= kBlock;
      last = (last + kBlock - 1) / kBlock;
      for (int64_t block = first / kBlock; block * kBlock < last; ++block) {
        play(round, block);
      }
    }
  }

  // Sweeps away what is out.
  void sweep() {
    auto& [score, member] = rounds_[0];
    int64_t kept = 0;
    for (size_t j = 0; j < line_.start.size(); ++j) {
      if (score[j] != kOut) {
        line_.start[kept] = line_.start[j];
        line_.end[kept] = line_.end[j];
        score[kept] = score[j];
        member[kept] = member[j];
        position_[member[j]] = kept++;
      }
    }
    for (auto* column : {&line_.start, &line_.end}) {
      column->resize(kept);
    }
    for (auto* column : {&score, &member}) {
      column->resize(kept);
    }
    start();
  }

  const Nms& rules_;
  Timeline line_;
  std::vector<int64_t> position_;
  std::vector<Round> rounds_;   // the first one: all members
  std::vector<double> latest_;  // end in each block of the first round
  int64_t in_;
};

}  // namespace

std::vector<int64_t> sort_into_groups(const int64_t* groups, int64_t size, int64_t* members) {
  std::vector<int64_t> group_begin;
  if (std::is_sorted(groups, groups + size)) {
    std::iota(members, members + size, 0);
  } else {
    const auto lowest = static_cast<uint64_t>(*std::min_element(groups, groups + size));
    Items<uint64_t> items(size), scratch;
    for (int64_t i = 0; i < size; ++i) {
      items[i] = {static_cast<uint64_t>(groups[i]) - lowest, static_cast<uint64_t>(i)};
    }
    radix_sort(items, scratch);
    for (int64_t i = 0; i < size; ++i) {
      members[i] = static_cast<int64_t>(items[i].index);
    }
  }
  for (int64_t i = 0; i < size; ++i) {
    if (i == 0 || groups[members[i]] != groups[members[i - 1]]) {
      group_begin.push_back(i);
    }
  }
  group_begin.push_back(size);
  return group_begin;
}

template <typename T>
void nms(
    const Nms& rules, const T* segments, const T* scores, const int64_t* members, const int64_t* group_begin,
    T* kept_segments, T* kept_scores, int64_t* kept, int64_t* kept_count, int64_t begin, int64_t end) {
  Group<T> group;
  std::vector<Kept> found;
  for (int64_t g = begin; g < end; ++g) {
    const int64_t* own = members + group_begin[g];
    group.load(segments, scores, own, group_begin[g + 1] - group_begin[g], rules.offset);
    found.clear();
    if (rules.method == NmsMethod::hard) {
      hard_nms(rules, group, scores, own, found);
    } else {
      Tournament tournament(rules, group, scores, own);
      while (!tournament.over() && static_cast<int64_t>(found.size()) < rules.max_per_group) {
        found.push_back(tournament.next());
      }
    }
    // The mean of the segments with a tIoU of at least `voting` with that at position i, weighted by their scores.
    const auto vote = [&](int64_t i, T* segment) {
      double weights = 0, start = 0, stop = 0;
      const auto [first, last] = group.timeline.alike(i, rules.voting);
      for (int64_t j = first; j < last; ++j) {
        const auto score = static_cast<double>(scores[own[group.member[j]]]);
        if (score > 0 && score < kInfinity && group.timeline.tiou(i, j) >= rules.voting) {
          weights += score;
          start += score * group.timeline.start[j];
          stop += score * group.timeline.end[j];
        }
      }
      if (weights > 0) {
        segment[0] = static_cast<T>(start / weights);
        segment[1] = static_cast<T>(stop / weights);
      }
    };
    kept_count[g] = static_cast<int64_t>(found.size());
    int64_t place = group_begin[g];
    for (const auto [member, score] : found) {
      const int64_t i = own[member];
      kept[place] = i;
      kept_scores[place] = static_cast<T>(score);
      std::copy_n(segments + 2 * i, 2, kept_segments + 2 * place);
      if (rules.voting > 0) {
        vote(group.position[member], kept_segments + 2 * place);
      }
      ++place;
    }
  }
}

#define INSTANTIATE(T)  \
  template void nms<T>( \
      const Nms&, const T*, const T*, const int64_t*, const int64_t*, T*, T*, int64_t*, int64_t*, int64_t, int64_t);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(BFloat16)
INSTANTIATE(Half)
#undef INSTANTIATE

}  // namespace potloc::cpu::POTLOC_CAPABILITY
