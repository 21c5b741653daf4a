#include "cpu/nms.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <numeric>
#include <tuple>
#include <vector>

#include "common/checks.h"
#include "common/dispatch.h"

namespace potloc {
namespace {

constexpr const char* kOp = "nms";

std::tuple<Tensor, Tensor, Tensor> nms_cpu(
    const Tensor& segments, const Tensor& scores, std::optional<Tensor> groups, int64_t method, double iou_threshold,
    double sigma, double min_score, double offset, int64_t max_per_group, double voting) {
  STD_TORCH_CHECK(scores.dim() == 1, kOp, ": scores must have shape [N]");
  const int64_t size = scores.size(0);
  check_shape(kOp, "segments", segments, {size, 2});
  check_dtype(kOp, "segments", segments, scores.scalar_type());
  STD_TORCH_CHECK(segments.is_contiguous() && scores.is_contiguous(), kOp, ": segments and scores must be contiguous");
  STD_TORCH_CHECK(method >= 0 && method <= 2, kOp, ": unknown method ", method);
  STD_TORCH_CHECK(iou_threshold > 0 && voting >= 0 && sigma > 0, kOp, ": thresholds and sigma must be positive");
  STD_TORCH_CHECK(min_score >= 0 && offset >= 0, kOp, ": min_score and offset must not be negative");
  const auto* group = data_or_null<int64_t>(groups);
  if (groups) {
    check_shape(kOp, "groups", *groups, {size});
    check_dtype(kOp, "groups", *groups, ScalarType::Long);
    STD_TORCH_CHECK(groups->is_contiguous(), kOp, ": groups must be contiguous");
  }

  std::vector<int64_t> members(size), group_begin;
  std::iota(members.begin(), members.end(), 0);
  if (groups && !std::is_sorted(group, group + size)) {
    std::stable_sort(members.begin(), members.end(), [&](int64_t a, int64_t b) { return group[a] < group[b]; });
  }
  for (int64_t i = 0; i < size; ++i) {
    if (i == 0 || (groups && group[members[i]] != group[members[i - 1]])) {
      group_begin.push_back(i);
    }
  }
  const int64_t group_count = static_cast<int64_t>(group_begin.size());
  group_begin.push_back(size);

  const cpu::Nms rules{
      static_cast<cpu::NmsMethod>(method), iou_threshold, sigma, min_score, offset, max_per_group, voting};
  Tensor kept_segments, kept_scores, keep;
  dispatch_floating(kOp, scores.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    std::vector<T> found_segments(2 * size), found_scores(size);
    std::vector<int64_t> found(size), count(group_count);
    torch::stable::parallel_for(0, group_count, 1, [&](int64_t begin, int64_t end) {
      POTLOC_CPU(
          nms, rules, static_cast<const T*>(segments.const_data_ptr()), static_cast<const T*>(scores.const_data_ptr()),
          members.data(), group_begin.data(), found_segments.data(), found_scores.data(), found.data(), count.data(),
          begin, end);
    });
    const int64_t total = std::accumulate(count.begin(), count.end(), int64_t{0});
    kept_segments = torch::stable::new_empty(segments, {total, 2});
    kept_scores = torch::stable::new_empty(scores, {total});
    keep = torch::stable::new_empty(scores, {total}, ScalarType::Long);
    auto* out_segments = static_cast<T*>(kept_segments.mutable_data_ptr());
    auto* out_scores = static_cast<T*>(kept_scores.mutable_data_ptr());
    auto* out = static_cast<int64_t*>(keep.mutable_data_ptr());
    for (int64_t g = 0; g < group_count; ++g) {
      const int64_t first = group_begin[g];
      out_segments = std::copy_n(found_segments.data() + 2 * first, 2 * count[g], out_segments);
      out_scores = std::copy_n(found_scores.data() + first, count[g], out_scores);
      out = std::copy_n(found.data() + first, count[g], out);
    }
  });
  return {kept_segments, kept_scores, keep};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(potloc_fast, CPU, m) {
  m.impl("nms", TORCH_BOX(&nms_cpu));
}

}  // namespace potloc
