// The single-thread O(N^2) algorithm of ActionFormer's nms_1d_cpu, written from its description: hard suppression in a
// double loop over segments sorted by score, and soft suppression (Gaussian) that swaps the best of what is left to the
// front in each step. Ties go to the lowest index, a tIoU equal to the threshold suppresses, arithmetic is in double.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

namespace {

struct Box {
  double start, end, score;
  int64_t index;
};

double tiou(const Box& a, const Box& b) {
  const double intersection = std::max(0.0, std::min(a.end, b.end) - std::max(a.start, b.start));
  return intersection > 0 ? intersection / (a.end - a.start + b.end - b.start - intersection) : 0;
}

bool better(const Box& a, const Box& b) {
  return a.score > b.score || (a.score == b.score && a.index < b.index);
}

std::vector<Box> boxes(const float* segments, const float* scores, const int64_t* members, int64_t size) {
  std::vector<Box> found;
  found.reserve(size);
  for (int64_t i = 0; i < size; ++i) {
    const int64_t m = members[i];
    found.push_back({segments[2 * m], segments[2 * m + 1], scores[m], m});
  }
  return found;
}

}  // namespace

extern "C" {

// Both write the indices of what is kept to `keep`, and say how many there are.
int64_t nms_1d(
    const float* segments, const float* scores, const int64_t* members, int64_t size, double threshold, int64_t* keep) {
  std::vector<Box> box = boxes(segments, scores, members, size);
  std::sort(box.begin(), box.end(), better);
  std::vector<unsigned char> suppressed(size);
  int64_t kept = 0;
  for (int64_t i = 0; i < size; ++i) {
    if (suppressed[i]) {
      continue;
    }
    keep[kept++] = box[i].index;
    for (int64_t j = i + 1; j < size; ++j) {
      if (!suppressed[j] && tiou(box[i], box[j]) >= threshold) {
        suppressed[j] = 1;
      }
    }
  }
  return kept;
}

int64_t soft_nms_1d(
    const float* segments, const float* scores, const int64_t* members, int64_t size, double sigma, double min_score,
    int64_t* keep, float* lowered) {
  std::vector<Box> box = boxes(segments, scores, members, size);
  int64_t kept = 0;
  for (; kept < size; ++kept) {
    int64_t best = kept;
    for (int64_t j = kept + 1; j < size; ++j) {
      if (better(box[j], box[best])) {
        best = j;
      }
    }
    std::swap(box[kept], box[best]);
    if (box[kept].score < min_score) {
      break;
    }
    keep[kept] = box[kept].index;
    lowered[kept] = static_cast<float>(box[kept].score);
    for (int64_t j = kept + 1; j < size; ++j) {
      const double overlap = tiou(box[kept], box[j]);
      if (overlap > 0) {
        box[j].score *= std::exp(-overlap * overlap / sigma);
      }
      if (box[j].score < min_score) {
        std::swap(box[j--], box[--size]);
      }
    }
  }
  return kept;
}

// Hard suppression in each of `groups` groups, one after the other.
int64_t batched_nms_1d(
    const float* segments, const float* scores, const int64_t* members, const int64_t* begin, int64_t groups,
    double threshold, int64_t* keep) {
  int64_t kept = 0;
  for (int64_t g = 0; g < groups; ++g) {
    kept += nms_1d(segments, scores, members + begin[g], begin[g + 1] - begin[g], threshold, keep + kept);
  }
  return kept;
}
}
