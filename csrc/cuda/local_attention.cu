// Banded softmax attention, P = softmax(scale Q K^T) within the band and O = P V: which kernels a call takes, and their
// launches. Half types run on tensor cores, a tile of positions at a time (local_attention_tiles.h); float32, float64
// and what those tiles do not take, a row at a time (local_attention_rows.h). Either way a block owns consecutive
// positions of one (batch, head). Backward, with dP = dO V^T and dS = P (dP - delta), one kernel gathers dq = scale dS
// K and writes delta = sum of P dP over the band of each query; a second one gathers dk = scale dS^T Q and dv = P^T dO.
// Every result is written once, by its owner: no atomics, results repeat bit for bit.

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <type_traits>

#include "cuda/local_attention.h"
#include "cuda/local_attention_rows.h"
#include "cuda/local_attention_tiles.h"

namespace potloc::cuda {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

constexpr const char* kOp = "local_attention";

// Calls f with the least head width, of those that there are kernels for, that holds `width` columns.
template <typename F>
void dispatch_width(int64_t width, F&& f) {
  if (width <= 64) {
    f(std::integral_constant<int, 64>{});
  } else if (width <= 128) {
    f(std::integral_constant<int, 128>{});
  } else {
    f(std::integral_constant<int, 256>{});
  }
}

// Whether every row begins at a multiple of 16 bytes.
template <typename T>
bool is_aligned(const LocalAttention& call, const Strided<T>& tensor) {
  const int64_t sizes[] = {call.batches, call.heads, call.length};
  bool aligned = reinterpret_cast<uintptr_t>(tensor.data) % 16 == 0;
  for (int d = 0; d < 3; ++d) {
    aligned = aligned && (sizes[d] == 1 || tensor.stride[d] % kVector == 0);
  }
  return aligned;
}

// Whether tiles can be read and written 16 bytes at a time, and have a kernel for the window.
template <typename... T>
bool takes_tiles(const LocalAttention& call, const Strided<T>&... tensors) {
  return call.width % kVector == 0 && (call.radius <= kNarrow || call.width <= kWidest) &&
         ((sizeof(T) == 2 && is_aligned(call, tensors)) && ...);
}

Grid grid(const LocalAttention& call, int owned, int threads, size_t shared_bytes, Stream stream) {
  const int64_t blocks = call.batches * call.heads * ((call.length + owned - 1) / owned);
  return {
      static_cast<unsigned>(blocks), static_cast<unsigned>(threads), shared_bytes, static_cast<cudaStream_t>(stream)};
}

template <int kWidth>
Grid tiles_grid(const LocalAttention& call, Stream stream) {
  using P = Plan<kWidth>;
  return grid(call, P::kOwned, kWarps * kWarp, 2 * P::kStaged * P::kPitch * sizeof(uint16_t), stream);
}

}  // namespace

template <typename T, typename A>
void local_attention_forward(
    const LocalAttention& call, const Strided<const T>& q, const Strided<const T>& k, const Strided<const T>& v,
    const Strided<T>& out, A* lse, Stream stream) {
  const bool tiles = takes_tiles(call, q, k, v, out), narrow = call.radius <= kNarrow;
  dispatch_width(call.width, [&](auto width) {
    constexpr int kWidth = decltype(width)::value;
    if constexpr (sizeof(T) == 2) {
      if (tiles) {
        constexpr bool kWide = kWidth <= kWidest;
        const auto kernel = narrow ? forward_kernel<T, kWidth, false> : forward_kernel<T, kWidth, kWide>;
        launch(kOp, kernel, tiles_grid<kWidth>(call, stream), call, q, k, v, out, lse);
        return;
      }
    }
    const Grid rows = grid(call, kOwnedRows, kRowThreads, 0, stream);
    launch(kOp, forward_rows_kernel<kWidth / kRowLanes, T, A>, rows, call, q, k, v, out, lse);
  });
}

template <typename T, typename A>
void local_attention_backward(
    const LocalAttention& call, const Strided<const T>& grad_out, const Strided<const T>& q, const Strided<const T>& k,
    const Strided<const T>& v, const A* lse, A* delta, const Strided<T>& grad_q, const Strided<T>& grad_k,
    const Strided<T>& grad_v, Stream stream) {
  const bool tiles = takes_tiles(call, grad_out, q, k, v, grad_q, grad_k, grad_v), narrow = call.radius <= kNarrow;
  dispatch_width(call.width, [&](auto width) {
    constexpr int kWidth = decltype(width)::value, kElements = kWidth / kRowLanes;
    if constexpr (sizeof(T) == 2) {
      if (tiles) {
        constexpr bool kWide = kWidth <= kWidest;
        const Grid on = tiles_grid<kWidth>(call, stream);
        const auto for_queries = narrow ? query_grad_kernel<T, kWidth, false> : query_grad_kernel<T, kWidth, kWide>;
        const auto for_keys = narrow ? key_grad_kernel<T, kWidth, false> : key_grad_kernel<T, kWidth, kWide>;
        launch(kOp, for_queries, on, call, grad_out, q, k, v, lse, delta, grad_q);
        launch(kOp, for_keys, on, call, grad_out, q, k, v, lse, delta, grad_k, grad_v);
        return;
      }
    }
    const Grid rows = grid(call, kOwnedRows, kRowThreads, 0, stream);
    launch(kOp, query_grad_rows_kernel<kElements, T, A>, rows, call, grad_out, q, k, v, lse, delta, grad_q);
    launch(kOp, key_grad_rows_kernel<kElements, T, A>, rows, call, grad_out, q, k, v, lse, delta, grad_k, grad_v);
  });
}

#define POTLOC_INSTANTIATE(T, A)                                                                        \
  template void local_attention_forward<T, A>(                                                          \
      const LocalAttention&, const Strided<const T>&, const Strided<const T>&, const Strided<const T>&, \
      const Strided<T>&, A*, Stream);                                                                   \
  template void local_attention_backward<T, A>(                                                         \
      const LocalAttention&, const Strided<const T>&, const Strided<const T>&, const Strided<const T>&, \
      const Strided<const T>&, const A*, A*, const Strided<T>&, const Strided<T>&, const Strided<T>&, Stream);
POTLOC_INSTANTIATE(float, float)
POTLOC_INSTANTIATE(double, double)
POTLOC_INSTANTIATE(BFloat16, float)
POTLOC_INSTANTIATE(Half, float)

}  // namespace potloc::cuda
