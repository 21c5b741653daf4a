#include "cpu/score_segments.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <limits>
#include <tuple>
#include <vector>

#include "common/checks.h"
#include "common/dispatch.h"
#include "common/registration.h"
#ifdef POTLOC_CUDA
#include "cuda/host.h"
#include "cuda/score_segments.h"
#endif

namespace potloc {
namespace {

constexpr const char* kOp = "score_segments";

ScalarType output_dtype(const Tensor& curves) {
  return curves.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Everything but the values of `lengths`.
void check(
    const Tensor& curves, const Tensor& thresholds, const std::optional<Tensor>& lengths, int64_t stride,
    int64_t upsample, double outer, const std::optional<Tensor>& scores) {
  STD_TORCH_CHECK(curves.dim() == 2, kOp, ": curves must have shape [N, T]");
  STD_TORCH_CHECK(thresholds.dim() == 1, kOp, ": thresholds must have shape [K]");
  STD_TORCH_CHECK(stride >= 1 && upsample >= 1, kOp, ": stride and upsample must be positive");
  STD_TORCH_CHECK(outer >= 0, kOp, ": outer must be 0 or more, got ", outer);
  check_dtype(kOp, "thresholds", thresholds, output_dtype(curves));
  STD_TORCH_CHECK(
      curves.is_contiguous() && thresholds.is_contiguous(), kOp, ": curves and thresholds must be contiguous");
  if (scores) {
    check_shape(kOp, "scores", *scores, {curves.size(0), curves.size(1)});
    check_dtype(kOp, "scores", *scores, curves.scalar_type());
    STD_TORCH_CHECK(scores->is_contiguous(), kOp, ": scores must be contiguous");
  }
  if (lengths) {
    check_shape(kOp, "lengths", *lengths, {curves.size(0)});
    check_dtype(kOp, "lengths", *lengths, ScalarType::Long);
    STD_TORCH_CHECK(lengths->is_contiguous(), kOp, ": lengths must be contiguous");
  }
}

void check_length(int64_t length, int64_t most) {
  STD_TORCH_CHECK(
      length >= 0 && length <= most, kOp, ": lengths must be from 0 to T * stride = ", most, ", got ", length);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> score_segments_cpu(
    const Tensor& curves, const Tensor& thresholds, std::optional<Tensor> lengths, int64_t stride, int64_t upsample,
    double outer, std::optional<Tensor> scores) {
  check(curves, thresholds, lengths, stride, upsample, outer, scores);
  const int64_t rows = curves.size(0), width = curves.size(1), levels = thresholds.size(0);
  const ScalarType dtype = output_dtype(curves);
  const auto* length = data_or_null<int64_t>(lengths);
  if (lengths) {
    for (int64_t row = 0; row < rows; ++row) {
      check_length(length[row], width * stride);
    }
  }
  const cpu::ScoreSegments call{width, levels, stride, upsample, outer, length};

  // Every block of rows has a list of its own; the lists are then joined in order.
  constexpr int64_t kRows = 16;
  const int64_t blocks = (rows + kRows - 1) / kRows;
  std::vector<int64_t> counts(rows * levels), offsets(blocks + 1);
  Tensor segments, contrast, row, threshold;
  dispatch_floating(kOp, curves.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulate<T>;
    std::vector<std::vector<cpu::ScoredSegment<A>>> found(blocks);
    torch::stable::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) {
        POTLOC_CPU(
            score_segments, call, static_cast<const T*>(curves.const_data_ptr()), data_or_null<T>(scores),
            static_cast<const A*>(thresholds.const_data_ptr()), found[block], counts.data(), block * kRows,
            std::min((block + 1) * kRows, rows));
      }
    });
    for (int64_t block = 0; block < blocks; ++block) {
      offsets[block + 1] = offsets[block] + static_cast<int64_t>(found[block].size());
    }
    segments = torch::stable::new_empty(curves, {offsets[blocks], 2}, dtype);
    contrast = torch::stable::new_empty(curves, {offsets[blocks]}, dtype);
    row = torch::stable::new_empty(curves, {offsets[blocks]}, ScalarType::Long);
    threshold = torch::stable::new_empty(curves, {offsets[blocks]}, ScalarType::Long);
    auto* out_segments = static_cast<A*>(segments.mutable_data_ptr());
    auto* out_contrast = static_cast<A*>(contrast.mutable_data_ptr());
    auto* out_row = static_cast<int64_t*>(row.mutable_data_ptr());
    auto* out_threshold = static_cast<int64_t*>(threshold.mutable_data_ptr());
    torch::stable::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) {
        int64_t place = offsets[block];
        for (const auto& [start, stop, score] : found[block]) {
          out_segments[2 * place] = start;
          out_segments[2 * place + 1] = stop;
          out_contrast[place++] = score;
        }
        place = offsets[block];
        for (int64_t i = block * kRows * levels; i < std::min((block + 1) * kRows, rows) * levels; ++i) {
          std::fill_n(out_row + place, counts[i], i / levels);
          std::fill_n(out_threshold + place, counts[i], i % levels);
          place += counts[i];
        }
      }
    });
  });
  return {segments, contrast, row, threshold};
}

#ifdef POTLOC_CUDA
std::tuple<Tensor, Tensor, Tensor, Tensor> score_segments_cuda(
    const Tensor& curves, const Tensor& thresholds, std::optional<Tensor> lengths, int64_t stride, int64_t upsample,
    double outer, std::optional<Tensor> scores) {
  check(curves, thresholds, lengths, stride, upsample, outer, scores);
  const cuda::Device device(curves);
  const cuda::ScoreSegments call{
      curves.size(0), curves.size(1), thresholds.size(0), stride, upsample, outer, data_or_null<int64_t>(lengths)};
  STD_TORCH_CHECK(
      static_cast<double>(call.width) * stride * upsample <= cuda::kMaxPoints, kOp, ": at most ", cuda::kMaxPoints,
      " points a row on a GPU, got T * stride * upsample = ", call.width, " * ", stride, " * ", upsample);
  STD_TORCH_CHECK(
      call.rows * std::max<int64_t>(call.thresholds, 1) <= std::numeric_limits<int32_t>::max(), kOp,
      ": at most 2^31 - 1 rows times thresholds on a GPU, got ", call.rows, " * ", call.thresholds);
  std::vector<Tensor> temporary;
  const auto workspace = [&](int64_t bytes) {
    temporary.push_back(cuda::allocate(curves, {bytes}, ScalarType::Byte));
    return temporary.back().mutable_data_ptr();
  };
  Tensor segments, contrast, row, threshold;
  const auto allocate = [&](int64_t total) {
    segments = cuda::allocate(curves, {total, 2}, output_dtype(curves));
    contrast = cuda::allocate(curves, {total}, output_dtype(curves));
    row = cuda::allocate(curves, {total}, ScalarType::Long);
    threshold = cuda::allocate(curves, {total}, ScalarType::Long);
  };
  if (call.rows == 0) {
    allocate(0);
    return {segments, contrast, row, threshold};
  }
  dispatch_floating(kOp, curves.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulate<T>;
    const auto* values = static_cast<const T*>(curves.const_data_ptr());
    const auto counted = cuda::count_segments(
        call, values, static_cast<const A*>(thresholds.const_data_ptr()), workspace, device.stream());
    if (!counted.lengths_fit) {
      check_length(counted.wrong_length, call.width * stride);
    }
    allocate(counted.total);
    if (counted.total > 0) {
      const cuda::ScoredSegments<A> out{
          static_cast<A*>(segments.mutable_data_ptr()), static_cast<A*>(contrast.mutable_data_ptr()),
          static_cast<int64_t*>(row.mutable_data_ptr()), static_cast<int64_t*>(threshold.mutable_data_ptr())};
      cuda::score_segments(call, values, data_or_null<T>(scores), counted, out, workspace, device.stream());
    }
  });
  return {segments, contrast, row, threshold};
}
#endif

}  // namespace

POTLOC_CPU_IMPL(m) {
  m.impl("score_segments", TORCH_BOX(&score_segments_cpu));
}

#ifdef POTLOC_CUDA
POTLOC_CUDA_IMPL(m) {
  m.impl("score_segments", TORCH_BOX(&score_segments_cuda));
}
#endif

}  // namespace potloc
