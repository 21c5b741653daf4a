#include "cpu/local_attention.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <tuple>

#include "common/checks.h"
#include "common/dispatch.h"
#include "common/huge_pages.h"
#include "common/registration.h"
#ifdef POTLOC_CUDA
#include "cuda/host.h"
#include "cuda/local_attention.h"
#endif

namespace potloc {
namespace {

constexpr const char* kOp = "local_attention";

ScalarType lse_dtype(const Tensor& q) {
  return q.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

cpu::LocalAttention describe(
    const Tensor& q, const Tensor& k, const Tensor& v, int64_t window, const std::optional<Tensor>& key_mask,
    double scale) {
  STD_TORCH_CHECK(q.dim() == 4, kOp, ": q must have shape [B, H, T, D], got ", q.dim(), " dimensions");
  STD_TORCH_CHECK(window > 0 && window % 2 == 1, kOp, ": window must be odd and positive, got ", window);
  cpu::LocalAttention shape{};
  shape.heads = q.size(1);
  shape.length = q.size(2);
  shape.width = q.size(3);
  shape.radius = std::min(window / 2, shape.length);
  shape.scale = scale;
  const auto describe_one = [&](const char* name, const Tensor& tensor, int64_t* stride) {
    check_shape(kOp, name, tensor, {q.size(0), q.size(1), q.size(2), q.size(3)});
    check_dtype(kOp, name, tensor, q.scalar_type());
    STD_TORCH_CHECK(
        tensor.size(3) == 1 || tensor.stride(3) == 1, kOp, ": the last dimension of ", name, " must be contiguous");
    for (int64_t d = 0; d < 3; ++d) {
      stride[d] = tensor.stride(d);
    }
  };
  describe_one("q", q, shape.q_stride);
  describe_one("k", k, shape.k_stride);
  describe_one("v", v, shape.v_stride);
  if (key_mask) {
    check_shape(kOp, "key_mask", *key_mask, {q.size(0), q.size(2)});
    check_dtype(kOp, "key_mask", *key_mask, ScalarType::Bool);
    STD_TORCH_CHECK(key_mask->is_contiguous(), kOp, ": key_mask must be contiguous");
    shape.key_mask = static_cast<const bool*>(key_mask->const_data_ptr());
    shape.mask_stride = q.size(2);
  }
  return shape;
}

void check_backward(const Tensor& grad_out, const Tensor& q, const Tensor& lse) {
  check_shape(kOp, "grad_out", grad_out, {q.size(0), q.size(1), q.size(2), q.size(3)});
  check_dtype(kOp, "grad_out", grad_out, q.scalar_type());
  check_shape(kOp, "lse", lse, {q.size(0), q.size(1), q.size(2)});
  check_dtype(kOp, "lse", lse, lse_dtype(q));
}

int64_t task_count(const Tensor& q, int64_t block) {
  return q.size(0) * q.size(1) * ((q.size(2) + block - 1) / block);
}

std::tuple<Tensor, Tensor> local_attention_cpu(
    const Tensor& q, const Tensor& k, const Tensor& v, int64_t window, std::optional<Tensor> key_mask, double scale) {
  auto shape = describe(q, k, v, window, key_mask, scale);
  shape.block = std::clamp<int64_t>(shape.length, 1, 128);
  Tensor out = on_huge_pages(torch::stable::new_empty(q, {q.size(0), q.size(1), q.size(2), q.size(3)}));
  Tensor lse = torch::stable::new_empty(q, {q.size(0), q.size(1), q.size(2)}, lse_dtype(q));
  dispatch_floating(kOp, q.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulate<T>;
    const auto* q_data = static_cast<const T*>(q.const_data_ptr());
    const auto* k_data = static_cast<const T*>(k.const_data_ptr());
    const auto* v_data = static_cast<const T*>(v.const_data_ptr());
    auto* out_data = static_cast<T*>(out.mutable_data_ptr());
    auto* lse_data = static_cast<A*>(lse.mutable_data_ptr());
    torch::stable::parallel_for(0, task_count(q, shape.block), 1, [&](int64_t begin, int64_t end) {
      POTLOC_CPU(local_attention_forward, shape, q_data, k_data, v_data, out_data, lse_data, begin, end);
    });
  });
  return {out, lse};
}

std::tuple<Tensor, Tensor, Tensor> local_attention_backward_cpu(
    const Tensor& grad_out, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& lse, int64_t window,
    std::optional<Tensor> key_mask, double scale) {
  auto shape = describe(q, k, v, window, key_mask, scale);
  check_backward(grad_out, q, lse);
  // At least as long as the halo on both of its sides: the work that blocks share stays in proportion to their own.
  shape.block = std::clamp<int64_t>(shape.length, 1, std::max<int64_t>(512, 2 * shape.radius));
  const Tensor grad = torch::stable::contiguous(grad_out), log_sum = torch::stable::contiguous(lse);
  const auto empty = [&] {
    return on_huge_pages(torch::stable::new_empty(q, {q.size(0), q.size(1), q.size(2), q.size(3)}));
  };
  Tensor grad_q = empty(), grad_k = empty(), grad_v = empty();
  dispatch_floating(kOp, q.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulate<T>;
    const auto* grad_data = static_cast<const T*>(grad.const_data_ptr());
    const auto* q_data = static_cast<const T*>(q.const_data_ptr());
    const auto* k_data = static_cast<const T*>(k.const_data_ptr());
    const auto* v_data = static_cast<const T*>(v.const_data_ptr());
    const auto* lse_data = static_cast<const A*>(log_sum.const_data_ptr());
    auto* gq = static_cast<T*>(grad_q.mutable_data_ptr());
    auto* gk = static_cast<T*>(grad_k.mutable_data_ptr());
    auto* gv = static_cast<T*>(grad_v.mutable_data_ptr());
    torch::stable::parallel_for(0, task_count(q, shape.block), 1, [&](int64_t begin, int64_t end) {
      POTLOC_CPU(local_attention_backward, shape, grad_data, q_data, k_data, v_data, lse_data, gq, gk, gv, begin, end);
    });
  });
  return {grad_q, grad_k, grad_v};
}

#ifdef POTLOC_CUDA
cuda::LocalAttention for_cuda(const cpu::LocalAttention& shape, const Tensor& q) {
  return {q.size(0), shape.heads, shape.length, shape.width, shape.radius, shape.scale, shape.key_mask};
}

template <typename T>
cuda::Strided<T> strided(const Tensor& tensor) {
  return {static_cast<const T*>(tensor.const_data_ptr()), {tensor.stride(0), tensor.stride(1), tensor.stride(2)}};
}

std::tuple<Tensor, Tensor> local_attention_cuda(
    const Tensor& q, const Tensor& k, const Tensor& v, int64_t window, std::optional<Tensor> key_mask, double scale) {
  const auto call = for_cuda(describe(q, k, v, window, key_mask, scale), q);
  const cuda::Device device(q);
  Tensor out = cuda::allocate(q, {q.size(0), q.size(1), q.size(2), q.size(3)}, q.scalar_type());
  Tensor lse = cuda::allocate(q, {q.size(0), q.size(1), q.size(2)}, lse_dtype(q));
  if (out.numel() > 0) {
    dispatch_floating(kOp, q.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      cuda::local_attention_forward<T, Accumulate<T>>(
          call, strided<T>(q), strided<T>(k), strided<T>(v), static_cast<T*>(out.mutable_data_ptr()),
          static_cast<Accumulate<T>*>(lse.mutable_data_ptr()), device.stream());
    });
  }
  return {out, lse};
}

std::tuple<Tensor, Tensor, Tensor> local_attention_backward_cuda(
    const Tensor& grad_out, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& lse, int64_t window,
    std::optional<Tensor> key_mask, double scale) {
  const auto call = for_cuda(describe(q, k, v, window, key_mask, scale), q);
  check_backward(grad_out, q, lse);
  const cuda::Device device(q);
  const auto empty = [&] { return cuda::allocate(q, {q.size(0), q.size(1), q.size(2), q.size(3)}, q.scalar_type()); };
  Tensor grad_q = empty(), grad_k = empty(), grad_v = empty();
  if (grad_q.numel() > 0) {
    const Tensor grad = grad_out.stride(3) == 1 ? grad_out : torch::stable::contiguous(grad_out);
    const Tensor log_sum = torch::stable::contiguous(lse);
    Tensor delta = cuda::allocate(q, {q.size(0), q.size(1), q.size(2)}, lse_dtype(q));
    dispatch_floating(kOp, q.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      using A = Accumulate<T>;
      cuda::local_attention_backward<T, A>(
          call, strided<T>(grad), strided<T>(q), strided<T>(k), strided<T>(v),
          static_cast<const A*>(log_sum.const_data_ptr()), static_cast<A*>(delta.mutable_data_ptr()),
          static_cast<T*>(grad_q.mutable_data_ptr()), static_cast<T*>(grad_k.mutable_data_ptr()),
          static_cast<T*>(grad_v.mutable_data_ptr()), device.stream());
    });
  }
  return {grad_q, grad_k, grad_v};
}
#endif

}  // namespace

POTLOC_CPU_IMPL(m) {
  m.impl("local_attention", TORCH_BOX(&local_attention_cpu));
  m.impl("_local_attention_backward", TORCH_BOX(&local_attention_backward_cpu));
}

#ifdef POTLOC_CUDA
POTLOC_CUDA_IMPL(m) {
  m.impl("local_attention", TORCH_BOX(&local_attention_cuda));
  m.impl("_local_attention_backward", TORCH_BOX(&local_attention_backward_cuda));
}
#endif

}  // namespace potloc
