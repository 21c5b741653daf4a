#include "cpu/fused_focal_loss.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "common/checks.h"
#include "common/dispatch.h"
#include "common/registration.h"
#ifdef POTLOC_CUDA
#include "cuda/fused_focal_loss.h"
#include "cuda/host.h"
#endif

namespace potloc {
namespace {

constexpr const char* kOp = "fused_focal_loss";

void check(const Tensor& logits, const Tensor& targets, const Tensor& positive, const Tensor& background) {
  STD_TORCH_CHECK(logits.dim() == 2 && logits.size(1) >= 1, kOp, ": logits must have shape [N, C + 1]");
  check_shape(kOp, "targets", targets, {logits.size(0), logits.size(1) - 1});
  check_dtype(kOp, "targets", targets, logits.scalar_type());
  STD_TORCH_CHECK(logits.is_contiguous() && targets.is_contiguous(), kOp, ": logits and targets must be contiguous");
  for (const Tensor* rows : {&positive, &background}) {
    check_shape(kOp, "positive and background", *rows, {logits.size(0)});
    check_dtype(kOp, "positive and background", *rows, ScalarType::Bool);
    STD_TORCH_CHECK(rows->is_contiguous(), kOp, ": positive and background must be contiguous");
  }
}

// Chunks that are worth a thread: those of 8192 logits.
int64_t grain(const Tensor& logits) {
  return 1 + 8192 / (cpu::kFusedFocalChunk * logits.size(1));
}

void check_incoming(const Tensor& grad_act, const Tensor& grad_bg, const Tensor& counts, const Tensor& logits) {
  for (const Tensor* grad : {&grad_act, &grad_bg}) {
    check_shape(kOp, "a gradient", *grad, {});
    check_dtype(kOp, "a gradient", *grad, logits.scalar_type());
  }
  check_shape(kOp, "counts", counts, {2});
  check_dtype(kOp, "counts", counts, ScalarType::Long);
}

int64_t chunk_count(const Tensor& logits) {
  return (logits.size(0) + cpu::kFusedFocalChunk - 1) / cpu::kFusedFocalChunk;
}

// Returns L_Act, L_BG and the number of rows that each is a mean over.
std::tuple<Tensor, Tensor, Tensor> fused_focal_loss_cpu(
    const Tensor& logits, const Tensor& targets, const Tensor& positive, const Tensor& background, double gamma) {
  check(logits, targets, positive, background);
  Tensor loss_act = torch::stable::new_empty(logits, {}), loss_bg = torch::stable::new_empty(logits, {});
  Tensor counts = torch::stable::new_empty(logits, {2}, ScalarType::Long);
  const auto* positive_rows = static_cast<const bool*>(positive.const_data_ptr());
  const auto* background_rows = static_cast<const bool*>(background.const_data_ptr());
  const int64_t rows = logits.size(0), chunks = chunk_count(logits);
  auto* count = static_cast<int64_t*>(counts.mutable_data_ptr());
  count[0] = std::count(positive_rows, positive_rows + rows, true);
  count[1] = std::count(background_rows, background_rows + rows, true);
  dispatch_floating(kOp, logits.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulate<T>;
    const auto* x = static_cast<const T*>(logits.const_data_ptr());
    const auto* t = static_cast<const T*>(targets.const_data_ptr());
    std::vector<A> partial(2 * chunks);
    torch::stable::parallel_for(0, chunks, grain(logits), [&](int64_t begin, int64_t end) {
      POTLOC_CPU(
          fused_focal_loss_forward, x, t, positive_rows, background_rows, partial.data(), static_cast<A>(gamma), rows,
          logits.size(1) - 1, begin, end);
    });
    double sum[2] = {0, 0};
    for (int64_t i = 0; i < 2 * chunks; ++i) {
      sum[i % 2] += partial[i];
    }
    *static_cast<T*>(loss_act.mutable_data_ptr()) = static_cast<T>(sum[0] / std::max<int64_t>(count[0], 1));
    *static_cast<T*>(loss_bg.mutable_data_ptr()) = static_cast<T>(sum[1] / std::max<int64_t>(count[1], 1));
  });
  return {loss_act, loss_bg, counts};
}

Tensor fused_focal_loss_backward_cpu(
    const Tensor& grad_act, const Tensor& grad_bg, const Tensor& counts, const Tensor& logits, const Tensor& targets,
    const Tensor& positive, const Tensor& background, double gamma) {
  check(logits, targets, positive, background);
  check_incoming(grad_act, grad_bg, counts, logits);
  Tensor grad_logits = torch::stable::empty_like(logits);
  const auto* count = static_cast<const int64_t*>(counts.const_data_ptr());
  dispatch_floating(kOp, logits.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulate<T>;
    const auto factor = [&](const Tensor& grad, int64_t rows) {
      return static_cast<A>(*static_cast<const T*>(grad.const_data_ptr())) / static_cast<A>(std::max<int64_t>(rows, 1));
    };
    const A act_factor = factor(grad_act, count[0]), bg_factor = factor(grad_bg, count[1]);
    const auto* x = static_cast<const T*>(logits.const_data_ptr());
    const auto* t = static_cast<const T*>(targets.const_data_ptr());
    const auto* positive_rows = static_cast<const bool*>(positive.const_data_ptr());
    const auto* background_rows = static_cast<const bool*>(background.const_data_ptr());
    auto* out = static_cast<T*>(grad_logits.mutable_data_ptr());
    torch::stable::parallel_for(0, chunk_count(logits), grain(logits), [&](int64_t begin, int64_t end) {
      POTLOC_CPU(
          fused_focal_loss_backward, act_factor, bg_factor, x, t, positive_rows, background_rows, out,
          static_cast<A>(gamma), logits.size(0), logits.size(1) - 1, begin, end);
    });
  });
  return grad_logits;
}

#ifdef POTLOC_CUDA
template <typename T>
cuda::FusedFocalLoss<T> cuda_call(
    const Tensor& logits, const Tensor& targets, const Tensor& positive, const Tensor& background, double gamma) {
  return {
      static_cast<const T*>(logits.const_data_ptr()),
      static_cast<const T*>(targets.const_data_ptr()),
      static_cast<const bool*>(positive.const_data_ptr()),
      static_cast<const bool*>(background.const_data_ptr()),
      logits.size(0),
      logits.size(1) - 1,
      gamma};
}

std::tuple<Tensor, Tensor, Tensor> fused_focal_loss_cuda(
    const Tensor& logits, const Tensor& targets, const Tensor& positive, const Tensor& background, double gamma) {
  check(logits, targets, positive, background);
  const cuda::Device device(logits);
  Tensor loss_act = cuda::allocate(logits, {}, logits.scalar_type());
  Tensor loss_bg = cuda::allocate(logits, {}, logits.scalar_type());
  Tensor counts = cuda::allocate(logits, {2}, ScalarType::Long);
  dispatch_floating(kOp, logits.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulate<T>;
    const auto call = cuda_call<T>(logits, targets, positive, background, gamma);
    const int64_t tiles = cuda::fused_focal_loss_tiles<T>(call.rows, call.classes);
    const ScalarType accumulate = sizeof(A) == sizeof(double) ? ScalarType::Double : ScalarType::Float;
    Tensor partial = cuda::allocate(logits, {tiles, sizeof(cuda::FusedFocalPartial<A>) / sizeof(A)}, accumulate);
    cuda::fused_focal_loss_forward<T, A>(
        call, static_cast<cuda::FusedFocalPartial<A>*>(partial.mutable_data_ptr()),
        static_cast<T*>(loss_act.mutable_data_ptr()), static_cast<T*>(loss_bg.mutable_data_ptr()),
        static_cast<int64_t*>(counts.mutable_data_ptr()), device.stream());
  });
  return {loss_act, loss_bg, counts};
}

Tensor fused_focal_loss_backward_cuda(
    const Tensor& grad_act, const Tensor& grad_bg, const Tensor& counts, const Tensor& logits, const Tensor& targets,
    const Tensor& positive, const Tensor& background, double gamma) {
  check(logits, targets, positive, background);
  check_incoming(grad_act, grad_bg, counts, logits);
  const cuda::Device device(logits);
  Tensor grad_logits = cuda::allocate(logits, {logits.size(0), logits.size(1)}, logits.scalar_type());
  if (grad_logits.numel() > 0) {
    dispatch_floating(kOp, logits.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      cuda::fused_focal_loss_backward<T, Accumulate<T>>(
          cuda_call<T>(logits, targets, positive, background, gamma), static_cast<const T*>(grad_act.const_data_ptr()),
          static_cast<const T*>(grad_bg.const_data_ptr()), static_cast<const int64_t*>(counts.const_data_ptr()),
          static_cast<T*>(grad_logits.mutable_data_ptr()), device.stream());
    });
  }
  return grad_logits;
}
#endif

}  // namespace

POTLOC_CPU_IMPL(m) {
  m.impl("fused_focal_loss", TORCH_BOX(&fused_focal_loss_cpu));
  m.impl("_fused_focal_loss_backward", TORCH_BOX(&fused_focal_loss_backward_cpu));
}

#ifdef POTLOC_CUDA
POTLOC_CUDA_IMPL(m) {
  m.impl("fused_focal_loss", TORCH_BOX(&fused_focal_loss_cuda));
  m.impl("_fused_focal_loss_backward", TORCH_BOX(&fused_focal_loss_backward_cuda));
}
#endif

}  // namespace potloc
