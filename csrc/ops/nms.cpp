#include "cpu/nms.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <numeric>
#include <tuple>
#include <vector>

#include "common/checks.h"
#include "common/dispatch.h"
#include "common/registration.h"
#ifdef POTLOC_CUDA
#include "cuda/host.h"
#include "cuda/nms.h"
#endif

namespace potloc {
namespace {

constexpr const char* kOp = "nms";

void check(
    const Tensor& segments, const Tensor& scores, const std::optional<Tensor>& groups, int64_t method,
    double iou_threshold, double sigma, double min_score, double offset, double voting) {
  STD_TORCH_CHECK(scores.dim() == 1, kOp, ": scores must have shape [N]");
  const int64_t size = scores.size(0);
  STD_TORCH_CHECK(size < int64_t{1} << 32, kOp, ": at most 2^32 - 1 segments, got ", size);
  check_shape(kOp, "segments", segments, {size, 2});
  check_dtype(kOp, "segments", segments, scores.scalar_type());
  STD_TORCH_CHECK(segments.is_contiguous() && scores.is_contiguous(), kOp, ": segments and scores must be contiguous");
  STD_TORCH_CHECK(method >= 0 && method <= 2, kOp, ": unknown method ", method);
  STD_TORCH_CHECK(iou_threshold > 0 && voting >= 0 && sigma > 0, kOp, ": thresholds and sigma must be positive");
  STD_TORCH_CHECK(min_score >= 0 && offset >= 0, kOp, ": min_score and offset must not be negative");
  if (groups) {
    check_shape(kOp, "groups", *groups, {size});
    check_dtype(kOp, "groups", *groups, ScalarType::Long);
    STD_TORCH_CHECK(groups->is_contiguous(), kOp, ": groups must be contiguous");
  }
}

std::tuple<Tensor, Tensor, Tensor> nms_cpu(
    const Tensor& segments, const Tensor& scores, std::optional<Tensor> groups, int64_t method, double iou_threshold,
    double sigma, double min_score, double offset, int64_t max_per_group, double voting) {
  check(segments, scores, groups, method, iou_threshold, sigma, min_score, offset, voting);
  const int64_t size = scores.size(0);
  const auto* group = data_or_null<int64_t>(groups);

  std::vector<int64_t> members(size), group_begin{0, size};
  if (groups) {
    group_begin = POTLOC_CPU(sort_into_groups, group, size, members.data());
  } else {
    std::iota(members.begin(), members.end(), 0);
  }
  const int64_t group_count = static_cast<int64_t>(group_begin.size()) - 1;

  const cpu::Nms rules{
      static_cast<cpu::NmsMethod>(method), iou_threshold, sigma, min_score, offset, max_per_group, voting};
  Tensor kept_segments, kept_scores, keep;
  dispatch_floating(kOp, scores.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    // Not zeroed: only what is kept is written and read.
    const auto found_segments = std::make_unique_for_overwrite<T[]>(2 * size);
    const auto found_scores = std::make_unique_for_overwrite<T[]>(size);
    const auto found = std::make_unique_for_overwrite<int64_t[]>(size);
    std::vector<int64_t> count(group_count), place(group_count + 1);
    torch::stable::parallel_for(0, group_count, 1, [&](int64_t begin, int64_t end) {
      POTLOC_CPU(
          nms, rules, static_cast<const T*>(segments.const_data_ptr()), static_cast<const T*>(scores.const_data_ptr()),
          members.data(), group_begin.data(), found_segments.get(), found_scores.get(), found.get(), count.data(),
          begin, end);
    });
    std::inclusive_scan(count.begin(), count.end(), place.begin() + 1);
    const int64_t total = place[group_count];
    kept_segments = torch::stable::new_empty(segments, {total, 2});
    kept_scores = torch::stable::new_empty(scores, {total});
    keep = torch::stable::new_empty(scores, {total}, ScalarType::Long);
    auto* out_segments = static_cast<T*>(kept_segments.mutable_data_ptr());
    auto* out_scores = static_cast<T*>(kept_scores.mutable_data_ptr());
    auto* out = static_cast<int64_t*>(keep.mutable_data_ptr());
    torch::stable::parallel_for(0, group_count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t g = begin; g < end; ++g) {
        const int64_t first = group_begin[g];
        std::copy_n(found_segments.get() + 2 * first, 2 * count[g], out_segments + 2 * place[g]);
        std::copy_n(found_scores.get() + first, count[g], out_scores + place[g]);
        std::copy_n(found.get() + first, count[g], out + place[g]);
      }
    });
  });
  return {kept_segments, kept_scores, keep};
}

#ifdef POTLOC_CUDA
std::tuple<Tensor, Tensor, Tensor> nms_cuda(
    const Tensor& segments, const Tensor& scores, std::optional<Tensor> groups, int64_t method, double iou_threshold,
    double sigma, double min_score, double offset, int64_t max_per_group, double voting) {
  check(segments, scores, groups, method, iou_threshold, sigma, min_score, offset, voting);
  const int64_t size = scores.size(0);
  STD_TORCH_CHECK(size <= std::numeric_limits<int32_t>::max(), kOp, ": at most 2^31 - 1 segments on a GPU, got ", size);
  const cuda::Device device(segments);
  const cuda::Nms rules{
      size,
      data_or_null<int64_t>(groups),
      static_cast<cuda::NmsMethod>(method),
      iou_threshold,
      sigma,
      min_score,
      offset,
      max_per_group,
      voting};
  std::vector<Tensor> temporary;
  const auto workspace = [&](int64_t bytes) {
    temporary.push_back(cuda::allocate(segments, {bytes}, ScalarType::Byte));
    return temporary.back().mutable_data_ptr();
  };
  Tensor kept_segments, kept_scores, keep;
  const auto allocate = [&](int64_t total) {
    kept_segments = cuda::allocate(segments, {total, 2}, segments.scalar_type());
    kept_scores = cuda::allocate(scores, {total}, scores.scalar_type());
    keep = cuda::allocate(scores, {total}, ScalarType::Long);
  };
  if (size == 0) {
    allocate(0);
    return {kept_segments, kept_scores, keep};
  }
  dispatch_floating(kOp, scores.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const auto* bounds = static_cast<const T*>(segments.const_data_ptr());
    const auto* score = static_cast<const T*>(scores.const_data_ptr());
    const cuda::KeptSegments found = cuda::nms(rules, bounds, score, workspace, device.stream());
    allocate(found.total);
    if (found.total > 0) {
      cuda::write_kept(
          rules, bounds, score, found, static_cast<T*>(kept_segments.mutable_data_ptr()),
          static_cast<T*>(kept_scores.mutable_data_ptr()), static_cast<int64_t*>(keep.mutable_data_ptr()),
          device.stream());
    }
  });
  return {kept_segments, kept_scores, keep};
}
#endif

}  // namespace

POTLOC_CPU_IMPL(m) {
  m.impl("nms", TORCH_BOX(&nms_cpu));
}

#ifdef POTLOC_CUDA
POTLOC_CUDA_IMPL(m) {
  m.impl("nms", TORCH_BOX(&nms_cuda));
}
#endif

}  // namespace potloc
