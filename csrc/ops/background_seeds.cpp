#include "cpu/background_seeds.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "common/checks.h"
#include "common/dispatch.h"
#include "common/registration.h"
#ifdef POTLOC_CUDA
#include "cuda/background_seeds.h"
#include "cuda/host.h"
#endif

namespace potloc {
namespace {

constexpr const char* kOp = "background_seeds";

// Snippets that are worth a thread.
constexpr int64_t kGrain = 32768;

void check(
    const Tensor& background, const Tensor& action, const std::vector<int64_t>& level_lengths,
    const std::optional<Tensor>& mask) {
  STD_TORCH_CHECK(background.dim() == 2, kOp, ": background must have shape [B, T]");
  STD_TORCH_CHECK(background.is_contiguous(), kOp, ": background must be contiguous");
  const auto check_rows = [&](const char* name, const Tensor& tensor) {
    check_shape(kOp, name, tensor, {background.size(0), background.size(1)});
    check_dtype(kOp, name, tensor, ScalarType::Bool);
    STD_TORCH_CHECK(tensor.is_contiguous(), kOp, ": ", name, " must be contiguous");
  };
  check_rows("action", action);
  if (mask) {
    check_rows("mask", *mask);
  }
  int64_t sum = 0;
  for (const int64_t length : level_lengths) {
    STD_TORCH_CHECK(length >= 0, kOp, ": level_lengths must not be negative, got ", length);
    sum += length;
  }
  STD_TORCH_CHECK(sum == background.size(1), kOp, ": level_lengths must add up to ", background.size(1));
}

Tensor background_seeds_cpu(
    const Tensor& background, const Tensor& action, std::vector<int64_t> level_lengths, double threshold,
    std::optional<Tensor> mask, bool outer_argmax) {
  check(background, action, level_lengths, mask);
  const int64_t videos = background.size(0), width = background.size(1);
  std::vector<int64_t> level_begin(level_lengths.size() + 1);
  std::partial_sum(level_lengths.begin(), level_lengths.end(), level_begin.begin() + 1);
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

#ifdef POTLOC_CUDA
Tensor background_seeds_cuda(
    const Tensor& background, const Tensor& action, std::vector<int64_t> level_lengths, double threshold,
    std::optional<Tensor> mask, bool outer_argmax) {
  check(background, action, level_lengths, mask);
  const cuda::Device device(background);
  cuda::BackgroundSeeds call{
      background.size(0), background.size(1), static_cast<int64_t>(level_lengths.size()), {}, data_or_null<bool>(mask),
      threshold,          outer_argmax};
  STD_TORCH_CHECK(
      call.levels <= cuda::kMaxLevels, kOp, ": at most ", cuda::kMaxLevels, " levels on a GPU, got ", call.levels);
  std::partial_sum(level_lengths.begin(), level_lengths.end(), call.level_begin + 1);
  Tensor seeds = cuda::allocate(background, {call.videos, call.width}, ScalarType::Bool);
  if (seeds.numel() > 0) {
    dispatch_floating(kOp, background.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      cuda::background_seeds(
          call, static_cast<const T*>(background.const_data_ptr()), static_cast<const bool*>(action.const_data_ptr()),
          static_cast<bool*>(seeds.mutable_data_ptr()), device.stream());
    });
  }
  return seeds;
}
#endif

}  // namespace

POTLOC_CPU_IMPL(m) {
  m.impl("background_seeds", TORCH_BOX(&background_seeds_cpu));
}

#ifdef POTLOC_CUDA
POTLOC_CUDA_IMPL(m) {
  m.impl("background_seeds", TORCH_BOX(&background_seeds_cuda));
}
#endif

}  // namespace potloc
