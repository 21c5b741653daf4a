#include "cpu/local_attention.h"

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/shim_utils.h>

#include <algorithm>
#include <array>
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
  const auto check = [&](const char* name, const Tensor& tensor) {
    check_shape(kOp, name, tensor, {q.size(0), q.size(1), q.size(2), q.size(3)});
    check_dtype(kOp, name, tensor, q.scalar_type());
    STD_TORCH_CHECK(
        tensor.size(3) == 1 || tensor.stride(3) == 1, kOp, ": the last dimension of ", name, " must be contiguous");
  };
  check("q", q);
  check("k", k);
  check("v", v);
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

// Uninitialised, for what belongs to `like`: its dimensions in the same order in memory, from the largest stride to the
// smallest, without gaps; the last one is innermost. `_empty_as` in Python says the same of fake tensors.
Tensor empty_as(const Tensor& like) {
  std::array<int64_t, 3> dims{2, 1, 0};  // from the innermost
  std::stable_sort(dims.begin(), dims.end(), [&](int64_t a, int64_t b) { return like.stride(a) < like.stride(b); });
  std::array<int64_t, 4> strides{0, 0, 0, 1};
  int64_t step = like.size(3);
  for (const int64_t d : dims) {
    strides[d] = step;
    step *= like.size(d);
  }
  using torch::stable::detail::from;
  const torch::headeronly::IntHeaderOnlyArrayRef in_order(strides.data(), strides.size());
  std::array<StableIValue, 7> stack{from(like),         from(like.sizes()), from(in_order),    from(std::nullopt),
                                    from(std::nullopt), from(std::nullopt), from(std::nullopt)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::new_empty_strided", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// `tensor` itself where its rows can be read in place, else a copy.
Tensor with_contiguous_rows(const Tensor& tensor) {
  return tensor.stride(3) == 1 ? tensor : torch::stable::contiguous(tensor);
}

template <typename T>
Strided<const T> to_read(const Tensor& tensor) {
  return {static_cast<const T*>(tensor.const_data_ptr()), {tensor.stride(0), tensor.stride(1), tensor.stride(2)}};
}

template <typename T>
Strided<T> to_write(const Tensor& tensor) {
  return {static_cast<T*>(tensor.mutable_data_ptr()), {tensor.stride(0), tensor.stride(1), tensor.stride(2)}};
}

std::tuple<Tensor, Tensor> local_attention_cpu(
    const Tensor& q, const Tensor& k, const Tensor& v, int64_t window, std::optional<Tensor> key_mask, double scale) {
  auto shape = describe(q, k, v, window, key_mask, scale);
  shape.block = std::clamp<int64_t>(shape.length, 1, 128);
  Tensor out = on_huge_pages(empty_as(q));
  Tensor lse = torch::stable::new_empty(q, {q.size(0), q.size(1), q.size(2)}, lse_dtype(q));
  dispatch_floating(kOp, q.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulate<T>;
    const auto queries = to_read<T>(q), keys = to_read<T>(k), values = to_read<T>(v);
    const auto target = to_write<T>(out);
    auto* lse_data = static_cast<A*>(lse.mutable_data_ptr());
    torch::stable::parallel_for(0, task_count(q, shape.block), 1, [&](int64_t begin, int64_t end) {
      POTLOC_CPU(local_attention_forward, shape, queries, keys, values, target, lse_data, begin, end);
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
  const Tensor grad = with_contiguous_rows(grad_out), log_sum = torch::stable::contiguous(lse);
  Tensor grad_q = on_huge_pages(empty_as(q)), grad_k = on_huge_pages(empty_as(k)), grad_v = on_huge_pages(empty_as(v));
  dispatch_floating(kOp, q.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulate<T>;
    const auto grads = to_read<T>(grad), queries = to_read<T>(q), keys = to_read<T>(k), values = to_read<T>(v);
    const auto dq = to_write<T>(grad_q), dk = to_write<T>(grad_k), dv = to_write<T>(grad_v);
    const auto* lse_data = static_cast<const A*>(log_sum.const_data_ptr());
    torch::stable::parallel_for(0, task_count(q, shape.block), 1, [&](int64_t begin, int64_t end) {
      POTLOC_CPU(local_attention_backward, shape, grads, queries, keys, values, lse_data, dq, dk, dv, begin, end);
    });
  });
  return {grad_q, grad_k, grad_v};
}

#ifdef POTLOC_CUDA
cuda::LocalAttention for_cuda(const cpu::LocalAttention& shape, const Tensor& q) {
  return {q.size(0), shape.heads, shape.length, shape.width, shape.radius, shape.scale, shape.key_mask};
}

std::tuple<Tensor, Tensor> local_attention_cuda(
    const Tensor& q, const Tensor& k, const Tensor& v, int64_t window, std::optional<Tensor> key_mask, double scale) {
  const auto call = for_cuda(describe(q, k, v, window, key_mask, scale), q);
  const cuda::Device device(q);
  Tensor out = cuda::guarded(empty_as(q));
  Tensor lse = cuda::allocate(q, {q.size(0), q.size(1), q.size(2)}, lse_dtype(q));
  if (out.numel() > 0) {
    dispatch_floating(kOp, q.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      cuda::local_attention_forward<T, Accumulate<T>>(
          call, to_read<T>(q), to_read<T>(k), to_read<T>(v), to_write<T>(out),
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
  Tensor grad_q = cuda::guarded(empty_as(q)), grad_k = cuda::guarded(empty_as(k)), grad_v = cuda::guarded(empty_as(v));
  if (grad_q.numel() > 0) {
    const Tensor grad = with_contiguous_rows(grad_out), log_sum = torch::stable::contiguous(lse);
    Tensor delta = cuda::allocate(q, {q.size(0), q.size(1), q.size(2)}, lse_dtype(q));
    dispatch_floating(kOp, q.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      using A = Accumulate<T>;
      cuda::local_attention_backward<T, A>(
          call, to_read<T>(grad), to_read<T>(q), to_read<T>(k), to_read<T>(v),
          static_cast<const A*>(log_sum.const_data_ptr()), static_cast<A*>(delta.mutable_data_ptr()),
          to_write<T>(grad_q), to_write<T>(grad_k), to_write<T>(grad_v), device.stream());
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
