#include "cpu/sigmoid_focal_loss.h"

#include <torch/csrc/stable/ops.h>

#include <vector>

#include "common/checks.h"
#include "common/dispatch.h"
#include "common/registration.h"
#ifdef POTLOC_CUDA
#include "cuda/host.h"
#include "cuda/sigmoid_focal_loss.h"
#endif

namespace potloc {
namespace {

constexpr const char* kOp = "sigmoid_focal_loss";

// Chunks that are worth a thread.
constexpr int64_t kGrain = 2;

enum Reduction : int64_t { none = 0, mean = 1, sum = 2 };

void check(const Tensor& logits, const Tensor& targets, int64_t reduction) {
  check_dtype(kOp, "targets", targets, logits.scalar_type());
  STD_TORCH_CHECK(logits.numel() == targets.numel(), kOp, ": targets must have the shape of logits");
  STD_TORCH_CHECK(logits.is_contiguous() && targets.is_contiguous(), kOp, ": logits and targets must be contiguous");
  STD_TORCH_CHECK(reduction >= none && reduction <= sum, kOp, ": unknown reduction ", reduction);
}

void check_backward(const Tensor& grad, const Tensor& logits, const Tensor& targets, int64_t reduction) {
  check(logits, targets, reduction);
  check_dtype(kOp, "grad", grad, logits.scalar_type());
  STD_TORCH_CHECK(
      grad.numel() == (reduction == none ? logits.numel() : 1), kOp, ": the gradient has an unexpected size");
}

int64_t chunk_count(const Tensor& logits) {
  return (logits.numel() + cpu::kFocalChunk - 1) / cpu::kFocalChunk;
}

Tensor sigmoid_focal_loss_cpu(
    const Tensor& logits, const Tensor& targets, double alpha, double gamma, int64_t reduction) {
  check(logits, targets, reduction);
  Tensor loss = reduction == none ? torch::stable::empty_like(logits) : torch::stable::new_empty(logits, {});
  dispatch_floating(kOp, logits.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulate<T>;
    const auto* x = static_cast<const T*>(logits.const_data_ptr());
    const auto* t = static_cast<const T*>(targets.const_data_ptr());
    auto* out = static_cast<T*>(loss.mutable_data_ptr());
    const int64_t chunks = chunk_count(logits);
    std::vector<A> partial(reduction == none ? 0 : chunks);
    torch::stable::parallel_for(0, chunks, kGrain, [&](int64_t begin, int64_t end) {
      POTLOC_CPU(
          sigmoid_focal_loss_forward, x, t, reduction == none ? out : nullptr, partial.data(), static_cast<A>(alpha),
          static_cast<A>(gamma), logits.numel(), begin, end);
    });
    if (reduction != none) {
      double total = 0;
      for (const A value : partial) {
        total += value;
      }
      // The mean of nothing is NaN, as in PyTorch.
      *out = static_cast<T>(reduction == mean ? total / static_cast<double>(logits.numel()) : total);
    }
  });
  return loss;
}

Tensor sigmoid_focal_loss_backward_cpu(
    const Tensor& grad, const Tensor& logits, const Tensor& targets, double alpha, double gamma, int64_t reduction) {
  check_backward(grad, logits, targets, reduction);
  const Tensor incoming = torch::stable::contiguous(grad);
  Tensor grad_logits = torch::stable::empty_like(logits);
  dispatch_floating(kOp, logits.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulate<T>;
    const auto* g = static_cast<const T*>(incoming.const_data_ptr());
    const auto* x = static_cast<const T*>(logits.const_data_ptr());
    const auto* t = static_cast<const T*>(targets.const_data_ptr());
    auto* out = static_cast<T*>(grad_logits.mutable_data_ptr());
    const A factor = reduction == mean ? A(1) / static_cast<A>(logits.numel()) : A(1);
    torch::stable::parallel_for(0, chunk_count(logits), kGrain, [&](int64_t begin, int64_t end) {
      POTLOC_CPU(
          sigmoid_focal_loss_backward, g, reduction == none ? 1 : 0, factor, x, t, out, static_cast<A>(alpha),
          static_cast<A>(gamma), logits.numel(), begin, end);
    });
  });
  return grad_logits;
}

#ifdef POTLOC_CUDA
template <typename T>
cuda::SigmoidFocalLoss<T> cuda_call(const Tensor& logits, const Tensor& targets, double alpha, double gamma) {
  return {
      static_cast<const T*>(logits.const_data_ptr()), static_cast<const T*>(targets.const_data_ptr()), logits.numel(),
      alpha, gamma};
}

Tensor sigmoid_focal_loss_cuda(
    const Tensor& logits, const Tensor& targets, double alpha, double gamma, int64_t reduction) {
  check(logits, targets, reduction);
  const cuda::Device device(logits);
  const int64_t size = logits.numel();
  Tensor loss = reduction == none
                    ? torch::stable::view(cuda::allocate(logits, {size}, logits.scalar_type()), logits.sizes())
                    : cuda::allocate(logits, {}, logits.scalar_type());
  dispatch_floating(kOp, logits.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulate<T>;
    const auto call = cuda_call<T>(logits, targets, alpha, gamma);
    auto* out = static_cast<T*>(loss.mutable_data_ptr());
    if (reduction != none) {
      const ScalarType accumulate = sizeof(A) == sizeof(double) ? ScalarType::Double : ScalarType::Float;
      Tensor partial = cuda::allocate(logits, {cuda::sigmoid_focal_loss_chunks<T>(size)}, accumulate);
      // The mean of nothing is NaN, as in PyTorch.
      const double divisor = reduction == mean ? static_cast<double>(size) : 1;
      cuda::sigmoid_focal_loss_forward<T, A>(
          call, static_cast<A*>(partial.mutable_data_ptr()), divisor, out, device.stream());
    } else if (size > 0) {
      cuda::sigmoid_focal_loss_forward<T, A>(call, out, device.stream());
    }
  });
  return loss;
}

Tensor sigmoid_focal_loss_backward_cuda(
    const Tensor& grad, const Tensor& logits, const Tensor& targets, double alpha, double gamma, int64_t reduction) {
  check_backward(grad, logits, targets, reduction);
  const cuda::Device device(logits);
  const Tensor incoming = torch::stable::contiguous(grad);
  const int64_t size = logits.numel();
  Tensor grad_logits = torch::stable::view(cuda::allocate(logits, {size}, logits.scalar_type()), logits.sizes());
  if (size > 0) {
    dispatch_floating(kOp, logits.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      cuda::sigmoid_focal_loss_backward<T, Accumulate<T>>(
          cuda_call<T>(logits, targets, alpha, gamma), static_cast<const T*>(incoming.const_data_ptr()),
          reduction != none, reduction == mean ? 1 / static_cast<double>(size) : 1,
          static_cast<T*>(grad_logits.mutable_data_ptr()), device.stream());
    });
  }
  return grad_logits;
}
#endif

}  // namespace

POTLOC_CPU_IMPL(m) {
  m.impl("sigmoid_focal_loss", TORCH_BOX(&sigmoid_focal_loss_cpu));
  m.impl("_sigmoid_focal_loss_backward", TORCH_BOX(&sigmoid_focal_loss_backward_cpu));
}

#ifdef POTLOC_CUDA
POTLOC_CUDA_IMPL(m) {
  m.impl("sigmoid_focal_loss", TORCH_BOX(&sigmoid_focal_loss_cuda));
  m.impl("_sigmoid_focal_loss_backward", TORCH_BOX(&sigmoid_focal_loss_backward_cuda));
}
#endif

}  // namespace potloc
