// Non-maximum suppression on time segments, group by group, in double. The members of a group are sorted by start, so
// that those which a segment can suppress are neighbours: tIoU >= t asks that the starts are at most
// (1 - t) / t * (the shorter length) apart, and any overlap asks that one starts within the other. Built with
// floating-point contraction off, so that every instruction set decides the same.

#include "cpu/nms.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <queue>
#include <utility>
#include <vector>

namespace potloc::cpu::POTLOC_CAPABILITY {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// Positions [first, last) in the order of starts.
struct Window {
  int64_t first, last;
};

// The members of one group: by ascending start, those that are not finite (and overlap nothing) last.
class Group {
 public:
  std::vector<int64_t> index;
  std::vector<double> start, end, score;

  template <typename T>
  Group(const T* segments, const T* scores, const int64_t* members, int64_t size, double offset)
      : index(members, members + size), offset_(offset) {
    const auto finite_end = std::stable_partition(index.begin(), index.end(), [&](int64_t i) {
      return std::isfinite(static_cast<double>(segments[2 * i])) &&
             std::isfinite(static_cast<double>(segments[2 * i + 1]));
    });
    std::stable_sort(index.begin(), finite_end, [&](int64_t a, int64_t b) {
      return static_cast<double>(segments[2 * a]) < static_cast<double>(segments[2 * b]);
    });
    finite_ = finite_end - index.begin();
    for (const int64_t i : index) {
      start.push_back(segments[2 * i]);
      end.push_back(segments[2 * i + 1]);
      score.push_back(scores[i]);
    }
    for (int64_t i = 0; i < finite_; ++i) {
      longest_ = std::max(longest_, end[i] - start[i] + offset);
    }
  }

  int64_t size() const {
    return static_cast<int64_t>(index.size());
  }

  // Positions by descending score, NaN last, ties by lowest index.
  std::vector<int64_t> by_score() const {
    std::vector<int64_t> order(size());
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
      if (std::isnan(score[a]) || std::isnan(score[b]) || score[a] == score[b]) {
        const bool a_last = std::isnan(score[a]), b_last = std::isnan(score[b]);
        return a_last == b_last ? index[a] < index[b] : b_last;
      }
      return score[a] > score[b];
    });
    return order;
  }

  double tiou(int64_t a, int64_t b) const {
    const double intersection = std::min(end[a], end[b]) - std::max(start[a], start[b]) + offset_;
    const double sum = (end[a] - start[a] + offset_) + (end[b] - start[b] + offset_);
    return intersection > 0 ? intersection / (sum - intersection) : 0;
  }

  // All that may have a tIoU of at least `threshold` with `i`.
  Window alike(int64_t i, double threshold) const {
    const double reach = (1 - threshold) / threshold * (end[i] - start[i] + offset_);
    return starts_within(i, start[i] - reach, start[i] + reach);
  }

  // All that may overlap `i`.
  Window overlapping(int64_t i) const {
    return starts_within(i, start[i] - longest_, end[i] + offset_);
  }

 private:
  Window starts_within(int64_t i, double from, double to) const {
    if (i >= finite_ || to < from) {
      return {i, i};
    }
    // The bounds are rounded: look a little further.
    const double slack = 1e-9 * (std::abs(from) + std::abs(to) + std::abs(start[i]));
    const auto first = start.begin(), last = first + finite_;
    const auto low = std::lower_bound(first, last, from - slack);
    return {low - first, std::upper_bound(low, last, to + slack) - first};
  }

  double offset_, longest_ = 0;
  int64_t finite_;
};

// What is kept: positions in the group and their scores.
struct Kept {
  std::vector<int64_t> position;
  std::vector<double> score;

  void add(int64_t i, double value) {
    position.push_back(i);
    score.push_back(value);
  }
  bool full(const Nms& rules) const {
    return static_cast<int64_t>(position.size()) >= rules.max_per_group;
  }
};

Kept hard_nms(const Nms& rules, const Group& group) {
  Kept kept;
  std::vector<unsigned char> suppressed(group.size());
  for (const int64_t i : group.by_score()) {
    if (suppressed[i]) {
      continue;
    }
    if (kept.full(rules)) {
      break;
    }
    kept.add(i, group.score[i]);
    const Window window = group.alike(i, rules.iou_threshold);
    for (int64_t j = window.first; j < window.last; ++j) {
      suppressed[j] |= group.tiou(i, j) >= rules.iou_threshold;
    }
  }
  return kept;
}

Kept soft_nms(const Nms& rules, const Group& group) {
  Kept kept;
  std::vector<double> score = group.score;
  // Scores only fall, so an entry of the queue that is out of date is put back with its present score when it comes up.
  using Entry = std::pair<double, int64_t>;
  const auto after = [&](const Entry& a, const Entry& b) {
    return a.first < b.first || (a.first == b.first && group.index[a.second] > group.index[b.second]);
  };
  std::priority_queue<Entry, std::vector<Entry>, decltype(after)> queue(after);
  const auto push = [&](int64_t i) {
    if (score[i] >= rules.min_score) {
      queue.emplace(score[i], i);
    }
  };
  for (int64_t i = 0; i < group.size(); ++i) {
    push(i);
  }
  while (!queue.empty() && !kept.full(rules)) {
    const auto [value, i] = queue.top();
    queue.pop();
    if (value != score[i]) {
      push(i);
      continue;
    }
    kept.add(i, value);
    const bool linear = rules.method == NmsMethod::linear;
    const Window window = linear ? group.alike(i, rules.iou_threshold) : group.overlapping(i);
    for (int64_t j = window.first; j < window.last; ++j) {
      const double tiou = group.tiou(i, j);
      if (linear ? tiou >= rules.iou_threshold : tiou > 0) {
        score[j] *= linear ? 1 - tiou : std::exp(-tiou * tiou / rules.sigma);
      }
    }
  }
  return kept;
}

// The mean of the segments with a tIoU of at least `voting` with segment i, weighted by their scores.
std::pair<double, double> vote(const Nms& rules, const Group& group, int64_t i) {
  double weights = 0, start = 0, end = 0;
  const Window window = group.alike(i, rules.voting);
  for (int64_t j = window.first; j < window.last; ++j) {
    if (group.score[j] > 0 && group.tiou(i, j) >= rules.voting) {
      weights += group.score[j];
      start += group.score[j] * group.start[j];
      end += group.score[j] * group.end[j];
    }
  }
  return weights > 0 ? std::pair(start / weights, end / weights) : std::pair(group.start[i], group.end[i]);
}

}  // namespace

template <typename T>
void nms(
    const Nms& rules, const T* segments, const T* scores, const int64_t* members, const int64_t* group_begin,
    T* kept_segments, T* kept_scores, int64_t* kept, int64_t* kept_count, int64_t begin, int64_t end) {
  for (int64_t g = begin; g < end; ++g) {
    const Group group(segments, scores, members + group_begin[g], group_begin[g + 1] - group_begin[g], rules.offset);
    const Kept found = rules.method == NmsMethod::hard ? hard_nms(rules, group) : soft_nms(rules, group);
    kept_count[g] = static_cast<int64_t>(found.position.size());
    for (int64_t k = 0; k < kept_count[g]; ++k) {
      const int64_t i = found.position[k], place = group_begin[g] + k;
      const auto [start, stop] = rules.voting > 0 ? vote(rules, group, i) : std::pair(group.start[i], group.end[i]);
      kept_segments[2 * place] = static_cast<T>(start);
      kept_segments[2 * place + 1] = static_cast<T>(stop);
      kept_scores[place] = static_cast<T>(found.score[k]);
      kept[place] = group.index[i];
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
