#include "cpu/score_segments.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>
#include <vector>

#include "common/checks.h"
#include "common/dispatch.h"

namespace potloc {
namespace {

constexpr const char* kOp = "score_segments";

std::tuple<Tensor, Tensor, Tensor, Tensor> score_segments_cpu(
    const Tensor& curves, const Tensor& thresholds, std::optional<Tensor> lengths, int64_t stride, int64_t upsample,
    double outer, std::optional<Tensor> scores) {
  STD_TORCH_CHECK(curves.dim() == 2, kOp, ": curves must have shape [N, T]");
  STD_TORCH_CHECK(thresholds.dim() == 1, kOp, ": thresholds must have shape [K]");
  STD_TORCH_CHECK(stride >= 1 && upsample >= 1, kOp, ": stride and upsample must be positive");
  STD_TORCH_CHECK(outer >= 0, kOp, ": outer must be 0 or more, got ", outer);
  const int64_t rows = curves.size(0), width = curves.size(1), levels = thresholds.size(0);
  const ScalarType dtype = curves.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  check_dtype(kOp, "thresholds", thresholds, dtype);
  STD_TORCH_CHECK(
      curves.is_contiguous() && thresholds.is_contiguous(), kOp, ": curves and thresholds must be contiguous");
  if (scores) {
    check_shape(kOp, "scores", *scores, {rows, width});
    check_dtype(kOp, "scores", *scores, curves.scalar_type());
    STD_TORCH_CHECK(scores->is_contiguous(), kOp, ": scores must be contiguous");
  }
  const auto* length = data_or_null<int64_t>(lengths);
  if (lengths) {
    check_shape(kOp, "lengths", *lengths, {rows});
    check_dtype(kOp, "lengths", *lengths, ScalarType::Long);
    STD_TORCH_CHECK(lengths->is_contiguous(), kOp, ": lengths must be contiguous");
    for (int64_t row = 0; row < rows; ++row) {
      STD_TORCH_CHECK(
          length[row] >= 0 && length[row] <= width * stride, kOp,
          ": lengths must be from 0 to T * stride = ", width * stride, ", got ", length[row]);
    }
  }
  const cpu::ScoreSegments call{width, levels, stride, upsample, outer, length};

  std::vector<int64_t> counts(rows * levels), offsets(rows * levels + 1);
  Tensor segments, contrast, row, threshold;
  dispatch_floating(kOp, curves.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulate<T>;
    const auto* values = static_cast<const T*>(curves.const_data_ptr());
    const auto* over = static_cast<const A*>(thresholds.const_data_ptr());
    torch::stable::parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
      POTLOC_CPU(count_segments, call, values, over, counts.data(), begin, end);
    });
    for (int64_t i = 0; i < rows * levels; ++i) {
      offsets[i + 1] = offsets[i] + counts[i];
    }
    const int64_t total = offsets[rows * levels];
    segments = torch::stable::new_empty(curves, {total, 2}, dtype);
    contrast = torch::stable::new_empty(curves, {total}, dtype);
    row = torch::stable::new_empty(curves, {total}, ScalarType::Long);
    threshold = torch::stable::new_empty(curves, {total}, ScalarType::Long);
    const cpu::ScoredSegments<A> out{
        static_cast<A*>(segments.mutable_data_ptr()), static_cast<A*>(contrast.mutable_data_ptr()),
        static_cast<int64_t*>(row.mutable_data_ptr()), static_cast<int64_t*>(threshold.mutable_data_ptr())};
    torch::stable::parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
      POTLOC_CPU(score_segments, call, values, data_or_null<T>(scores), over, offsets.data(), out, begin, end);
    });
  });
  return {segments, contrast, row, threshold};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(potloc_fast, CPU, m) {
  m.impl("score_segments", TORCH_BOX(&score_segments_cpu));
}

}  // namespace potloc
