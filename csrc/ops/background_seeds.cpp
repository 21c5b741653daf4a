#include "cpu/background_seeds.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "common/checks.h"
#include "common/dispatch.h"

namespace potloc {
namespace {

constexpr const char* kOp = "background_seeds";

// Snippets that are worth a thread.
constexpr int64_t kGrain = 32768;

Tensor background_seeds_cpu(
    const Tensor& background, const Tensor& action, std::vector<int64_t> level_lengths, double threshold,
    std::optional<Tensor> mask, bool outer_argmax) {
  STD_TORCH_CHECK(background.dim() == 2, kOp, ": background must have shape [B, T]");
  STD_TORCH_CHECK(background.is_contiguous(), kOp, ": background must be contiguous");
  const int64_t videos = background.size(0), width = background.size(1);
  const auto check = [&](const char* name, const Tensor& tensor) {
    check_shape(kOp, name, tensor, {videos, width});
    check_dtype(kOp, name, tensor, ScalarType::Bool);
    STD_TORCH_CHECK(tensor.is_contiguous(), kOp, ": ", name, " must be contiguous");
  };
  check("action", action);
  if (mask) {
    check("mask", *mask);
  }
  std::vector<int64_t> level_begin{0};
  for (const int64_t length : level_lengths) {
    STD_TORCH_CHECK(length >= 0, kOp, ": level_lengths must not be negative, got ", length);
    level_begin.push_back(level_begin.back() + length);
  }
  STD_TORCH_CHECK(level_begin.back() == width, kOp, ": level_lengths must add up to ", width);
  const int64_t levels = static_cast<int64_t>(level_lengths.size());
  const cpu::BackgroundSeeds call{width, levels, level_begin.data(), data_or_null<bool>(mask), threshold, outer_argmax};
  Tensor seeds = torch::stable::new_empty(background, {videos, width}, ScalarType::Bool);
  dispatch_floating(kOp, background.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const auto* values = static_cast<const T*>(background.const_data_ptr());
    const auto* is_action = static_cast<const bool*>(action.const_data_ptr());
    auto* out = static_cast<bool*>(seeds.mutable_data_ptr());
    const int64_t rows = videos * levels, grain = 1 + kGrain * rows / std::max<int64_t>(videos * width, 1);
    torch::stable::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
      POTLOC_CPU(background_seeds, call, values, is_action, out, begin, end);
    });
  });
  return seeds;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(potloc_fast, CPU, m) {
  m.impl("background_seeds", TORCH_BOX(&background_seeds_cpu));
}

}  // namespace potloc
