#include "cpu/depthwise_conv.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "common/checks.h"
#include "common/dispatch.h"
#include "common/huge_pages.h"
#include "common/registration.h"
#ifdef POTLOC_CUDA
#include "cuda/depthwise_conv.h"
#include "cuda/host.h"
#endif

namespace potloc {
namespace {

constexpr const char* kOp = "depthwise_conv";

// Values that are worth a thread.
constexpr int64_t kGrain = 32768;

ScalarType accumulate_dtype(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

cpu::DepthwiseConv describe(const Tensor& x, const Tensor& weight, int64_t stride, const std::optional<Tensor>& mask) {
  STD_TORCH_CHECK(x.dim() == 3, kOp, ": x must have shape [B, T, C]");
  STD_TORCH_CHECK(weight.dim() == 3, kOp, ": weight must have shape [N, 3, C]");
  check_shape(kOp, "weight", weight, {weight.size(0), 3, x.size(2)});
  check_dtype(kOp, "weight", weight, accumulate_dtype(x));
  STD_TORCH_CHECK(x.is_contiguous() && weight.is_contiguous(), kOp, ": x and weight must be contiguous");
  STD_TORCH_CHECK(
      weight.size(0) >= 1 && weight.size(0) <= cpu::kMostFilters, kOp, ": weight must hold 1 to ", cpu::kMostFilters,
      " filters, got ", weight.size(0));
  STD_TORCH_CHECK(stride == 1 || stride == 2, kOp, ": stride must be 1 or 2, got ", stride);
  if (mask) {
    check_shape(kOp, "mask", *mask, {x.size(0), x.size(1)});
    check_dtype(kOp, "mask", *mask, ScalarType::Bool);
    STD_TORCH_CHECK(mask->is_contiguous(), kOp, ": mask must be contiguous");
  }
  return {x.size(1), x.size(2), weight.size(0), stride, data_or_null<bool>(mask)};
}

std::vector<Tensor> contiguous_grads(
    const std::vector<Tensor>& grads, const cpu::DepthwiseConv& call, const Tensor& x) {
  STD_TORCH_CHECK(
      static_cast<int64_t>(grads.size()) == call.filters, kOp, ": expected ", call.filters, " gradients, got ",
      grads.size());
  std::vector<Tensor> incoming;
  for (const Tensor& grad : grads) {
    check_shape(kOp, "a gradient", grad, {x.size(0), call.out_length(), call.channels});
    check_dtype(kOp, "a gradient", grad, x.scalar_type());
    incoming.push_back(torch::stable::contiguous(grad));
  }
  return incoming;
}

int64_t block_count(const Tensor& x, int64_t rows) {
  return x.size(0) * ((rows + cpu::kDepthwiseBlock - 1) / cpu::kDepthwiseBlock);
}

int64_t block_grain(int64_t channels) {
  return 1 + kGrain / (cpu::kDepthwiseBlock * std::max<int64_t>(channels, 1));
}

template <typename T>
std::vector<const T*> read_from(const std::vector<Tensor>& tensors) {
  std::vector<const T*> data;
  for (const Tensor& tensor : tensors) {
    data.push_back(static_cast<const T*>(tensor.const_data_ptr()));
  }
  return data;
}

template <typename T>
std::vector<T*> write_to(const std::vector<Tensor>& tensors) {
  std::vector<T*> data;
  for (const Tensor& tensor : tensors) {
    data.push_back(static_cast<T*>(tensor.mutable_data_ptr()));
  }
  return data;
}

std::vector<Tensor> depthwise_conv_cpu(
    const Tensor& x, const Tensor& weight, int64_t stride, std::optional<Tensor> mask) {
  const auto call = describe(x, weight, stride, mask);
  std::vector<Tensor> out;
  for (int64_t n = 0; n < call.filters; ++n) {
    out.push_back(on_huge_pages(torch::stable::new_empty(x, {x.size(0), call.out_length(), call.channels})));
  }
  dispatch_floating(kOp, x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulate<T>;
    const auto out_data = write_to<T>(out);
    const auto* x_data = static_cast<const T*>(x.const_data_ptr());
    const auto* w_data = static_cast<const A*>(weight.const_data_ptr());
    const int64_t blocks = block_count(x, call.out_length());
    torch::stable::parallel_for(0, blocks, block_grain(call.channels), [&](int64_t begin, int64_t end) {
      POTLOC_CPU(depthwise_conv_forward, call, x_data, w_data, out_data.data(), begin, end);
    });
  });
  return out;
}

std::tuple<Tensor, Tensor> depthwise_conv_backward_cpu(
    std::vector<Tensor> grads, const Tensor& x, const Tensor& weight, int64_t stride, std::optional<Tensor> mask) {
  const auto call = describe(x, weight, stride, mask);
  const auto incoming = contiguous_grads(grads, call, x);
  Tensor grad_x = on_huge_pages(torch::stable::new_empty(x, {x.size(0), call.length, call.channels}));
  Tensor grad_weight = torch::stable::new_empty(weight, {call.filters, 3, call.channels});
  const int64_t blocks = block_count(x, call.length), weights = grad_weight.numel();
  Tensor partial = torch::stable::new_empty(weight, {blocks, weights});
  dispatch_floating(kOp, x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulate<T>;
    const auto grad_data = read_from<T>(incoming);
    const auto* x_data = static_cast<const T*>(x.const_data_ptr());
    const auto* w_data = static_cast<const A*>(weight.const_data_ptr());
    auto* gx_data = static_cast<T*>(grad_x.mutable_data_ptr());
    auto* gw_data = static_cast<A*>(grad_weight.mutable_data_ptr());
    auto* shares = static_cast<A*>(partial.mutable_data_ptr());
    torch::stable::parallel_for(0, blocks, block_grain(call.channels), [&](int64_t begin, int64_t end) {
      POTLOC_CPU(depthwise_conv_backward, call, grad_data.data(), x_data, w_data, gx_data, shares, begin, end);
    });
    std::fill_n(gw_data, weights, A(0));
    for (int64_t block = 0; block < blocks; ++block) {
      for (int64_t i = 0; i < weights; ++i) {
        gw_data[i] += shares[block * weights + i];
      }
    }
  });
  return {grad_x, grad_weight};
}

#ifdef POTLOC_CUDA
static_assert(cpu::kMostFilters == cuda::kMostFilters);

cuda::DepthwiseConv for_cuda(const cpu::DepthwiseConv& call, const Tensor& x) {
  return {x.size(0), call.length, call.out_length(), call.channels, call.filters, call.stride, call.mask};
}

std::vector<Tensor> depthwise_conv_cuda(
    const Tensor& x, const Tensor& weight, int64_t stride, std::optional<Tensor> mask) {
  const auto call = for_cuda(describe(x, weight, stride, mask), x);
  const cuda::Device device(x);
  std::vector<Tensor> out;
  for (int64_t n = 0; n < call.filters; ++n) {
    out.push_back(cuda::allocate(x, {call.batch, call.out_length, call.channels}, x.scalar_type()));
  }
  if (out[0].numel() > 0) {
    dispatch_floating(kOp, x.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      using A = Accumulate<T>;
      cuda::depthwise_conv_forward<T, A>(
          call, static_cast<const T*>(x.const_data_ptr()), static_cast<const A*>(weight.const_data_ptr()),
          write_to<T>(out).data(), device.stream());
    });
  }
  return out;
}

std::tuple<Tensor, Tensor> depthwise_conv_backward_cuda(
    std::vector<Tensor> grads, const Tensor& x, const Tensor& weight, int64_t stride, std::optional<Tensor> mask) {
  const auto shape = describe(x, weight, stride, mask);
  const auto call = for_cuda(shape, x);
  const cuda::Device device(x);
  const auto incoming = contiguous_grads(grads, shape, x);
  Tensor grad_x = cuda::allocate(x, {call.batch, call.length, call.channels}, x.scalar_type());
  Tensor grad_weight = cuda::allocate(weight, {call.filters, 3, call.channels}, weight.scalar_type());
  Tensor temporary;
  const auto workspace = [&](int64_t bytes) {
    temporary = cuda::allocate(x, {bytes}, ScalarType::Byte);
    return temporary.mutable_data_ptr();
  };
  if (grad_weight.numel() > 0) {
    dispatch_floating(kOp, x.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      using A = Accumulate<T>;
      cuda::depthwise_conv_backward<T, A>(
          call, read_from<T>(incoming).data(), static_cast<const T*>(x.const_data_ptr()),
          static_cast<const A*>(weight.const_data_ptr()), static_cast<T*>(grad_x.mutable_data_ptr()),
          static_cast<A*>(grad_weight.mutable_data_ptr()), workspace, device.stream());
    });
  }
  return {grad_x, grad_weight};
}
#endif

}  // namespace

POTLOC_CPU_IMPL(m) {
  m.impl("depthwise_conv", TORCH_BOX(&depthwise_conv_cpu));
  m.impl("_depthwise_conv_backward", TORCH_BOX(&depthwise_conv_backward_cpu));
}

#ifdef POTLOC_CUDA
POTLOC_CUDA_IMPL(m) {
  m.impl("depthwise_conv", TORCH_BOX(&depthwise_conv_cuda));
  m.impl("_depthwise_conv_backward", TORCH_BOX(&depthwise_conv_backward_cuda));
}
#endif

}  // namespace potloc
