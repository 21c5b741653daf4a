// Banded softmax attention. A task is a block of consecutive positions of one (batch, head): forward it owns their
// queries; backward it owns their queries (for dq) and their keys (for dk, dv), and looks at the queries up to `radius`
// away on either side, with all of their keys. Nothing is written by two tasks, so results do not depend on the number
// of threads.

#include "cpu/local_attention.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

namespace potloc::cpu::POTLOC_CAPABILITY {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// Rows [first, last) of a strided [T, D] matrix in the accumulation type: in place where the types agree, else
// converted once into `buffer`.
template <typename T, typename A>
struct Rows {
  const A* data;
  int64_t stride;
  int64_t first;

  Rows(const T* source, int64_t source_stride, int64_t width, int64_t begin, int64_t end, std::vector<A>& buffer)
      : first(begin) {
    if constexpr (std::is_same_v<T, A>) {
      data = source + begin * source_stride;
      stride = source_stride;
    } else {
      buffer.resize((end - begin) * width);
      for (int64_t t = begin; t < end; ++t) {
        const T* row = source + t * source_stride;
        A* target = buffer.data() + (t - begin) * width;
        for (int64_t d = 0; d < width; ++d) {
          target[d] = static_cast<A>(row[d]);
        }
      }
      data = buffer.data();
      stride = width;
    }
  }

  const A* operator[](int64_t t) const {
    return data + (t - first) * stride;
  }
};

template <typename A>
A dot(const A* a, const A* b, int64_t n) {
  A sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) {
    sum += a[i] * b[i];
  }
  return sum;
}

template <typename A>
void axpy(A weight, const A* x, A* y, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    y[i] += weight * x[i];
  }
}

// One task's place: which (batch, head), which positions, and where its halo ends.
struct Block {
  int64_t batch, head, row, first, last, halo_first, halo_last;

  Block(const LocalAttention& shape, int64_t task) {
    const int64_t blocks = (shape.length + shape.block - 1) / shape.block;
    row = task / blocks;
    batch = row / shape.heads;
    head = row % shape.heads;
    first = (task % blocks) * shape.block;
    last = std::min(first + shape.block, shape.length);
    halo_first = std::max<int64_t>(first - shape.radius, 0);
    halo_last = std::min(last + shape.radius, shape.length);
  }
};

}  // namespace

template <typename T, typename A>
void local_attention_forward(
    const LocalAttention& shape, const T* q, const T* k, const T* v, T* out, A* lse, int64_t begin, int64_t end) {
  const int64_t width = shape.width;
  std::vector<A> q_buffer, k_buffer, v_buffer, weights, sum(width);
  for (int64_t task = begin; task < end; ++task) {
    const Block block(shape, task);
    const auto offset = [&](const int64_t* stride) { return block.batch * stride[0] + block.head * stride[1]; };
    const Rows<T, A> queries(q + offset(shape.q_stride), shape.q_stride[2], width, block.first, block.last, q_buffer);
    const Rows<T, A> keys(
        k + offset(shape.k_stride), shape.k_stride[2], width, block.halo_first, block.halo_last, k_buffer);
    const Rows<T, A> values(
        v + offset(shape.v_stride), shape.v_stride[2], width, block.halo_first, block.halo_last, v_buffer);
    const bool* mask = shape.key_mask ? shape.key_mask + block.batch * shape.mask_stride : nullptr;
    weights.resize(block.halo_last - block.halo_first);
    for (int64_t i = block.first; i < block.last; ++i) {
      const int64_t low = std::max<int64_t>(i - shape.radius, 0), high = std::min(i + shape.radius + 1, shape.length);
      // -inf marks a key that is left out, and is what the maximum starts from.
      constexpr A kOut = -std::numeric_limits<A>::infinity();
      A highest = kOut;
      bool any = false;
      for (int64_t j = low; j < high; ++j) {
        const bool valid = mask == nullptr || mask[j];
        const A score = valid ? static_cast<A>(shape.scale) * dot(queries[i], keys[j], width) : kOut;
        weights[j - low] = score;
        highest = std::max(highest, score);
        any |= valid;
      }
      A total = 0;
      std::fill(sum.begin(), sum.end(), A(0));
      if (any) {
        for (int64_t j = low; j < high; ++j) {
          if (mask == nullptr || mask[j]) {
            const A weight = std::exp(weights[j - low] - highest);
            total += weight;
            axpy(weight, values[j], sum.data(), width);
          }
        }
      }
      const A inverse = any ? 1 / total : A(0);
      T* target = out + (block.row * shape.length + i) * width;
      for (int64_t d = 0; d < width; ++d) {
        target[d] = static_cast<T>(sum[d] * inverse);
      }
      lse[block.row * shape.length + i] = any ? highest + std::log(total) : kOut;
    }
  }
}

template <typename T, typename A>
void local_attention_backward(
    const LocalAttention& shape, const T* grad_out, const T* q, const T* k, const T* v, const A* lse, T* grad_q,
    T* grad_k, T* grad_v, int64_t begin, int64_t end) {
  const int64_t width = shape.width, length = shape.length;
  std::vector<A> q_buffer, k_buffer, v_buffer, g_buffer, dq(width), dk, dv, weights, slopes;
  for (int64_t task = begin; task < end; ++task) {
    const Block block(shape, task);
    const auto offset = [&](const int64_t* stride) { return block.batch * stride[0] + block.head * stride[1]; };
    const int64_t base = block.row * length * width;
    const int64_t keys_first = std::max<int64_t>(block.halo_first - shape.radius, 0);
    const int64_t keys_last = std::min(block.halo_last + shape.radius, length);
    const Rows<T, A> queries(
        q + offset(shape.q_stride), shape.q_stride[2], width, block.halo_first, block.halo_last, q_buffer);
    const Rows<T, A> grads(grad_out + base, width, width, block.halo_first, block.halo_last, g_buffer);
    const Rows<T, A> keys(k + offset(shape.k_stride), shape.k_stride[2], width, keys_first, keys_last, k_buffer);
    const Rows<T, A> values(v + offset(shape.v_stride), shape.v_stride[2], width, keys_first, keys_last, v_buffer);
    const bool* mask = shape.key_mask ? shape.key_mask + block.batch * shape.mask_stride : nullptr;
    dk.assign((block.last - block.first) * width, A(0));
    dv.assign((block.last - block.first) * width, A(0));
    weights.resize(keys_last - keys_first);
    slopes.resize(keys_last - keys_first);
    for (int64_t i = block.halo_first; i < block.halo_last; ++i) {
      const bool own_query = i >= block.first && i < block.last;
      const A log_sum = lse[block.row * length + i];
      std::fill(dq.begin(), dq.end(), A(0));
      // A row without a valid key has the constant output zero: no gradient passes through it.
      if (log_sum != -std::numeric_limits<A>::infinity()) {
        const int64_t low = std::max<int64_t>(i - shape.radius, 0), high = std::min(i + shape.radius + 1, length);
        // The sum over the band is dot(grad_out, out), but free of the rounding of a half-precision output.
        A delta = 0;
        for (int64_t j = low; j < high; ++j) {
          if (mask == nullptr || mask[j]) {
            weights[j - low] = std::exp(static_cast<A>(shape.scale) * dot(queries[i], keys[j], width) - log_sum);
            slopes[j - low] = dot(grads[i], values[j], width);
            delta += weights[j - low] * slopes[j - low];
          }
        }
        for (int64_t j = own_query ? low : std::max(low, block.first);
             j < (own_query ? high : std::min(high, block.last)); ++j) {
          if (mask != nullptr && !mask[j]) {
            continue;
          }
          const A weight = weights[j - low];
          const A grad_score = static_cast<A>(shape.scale) * weight * (slopes[j - low] - delta);
          if (own_query) {
            axpy(grad_score, keys[j], dq.data(), width);
          }
          if (j >= block.first && j < block.last) {
            axpy(grad_score, queries[i], dk.data() + (j - block.first) * width, width);
            axpy(weight, grads[i], dv.data() + (j - block.first) * width, width);
          }
        }
      }
      if (own_query) {
        std::transform(dq.begin(), dq.end(), grad_q + base + i * width, [](A x) { return static_cast<T>(x); });
      }
    }
    const int64_t own = base + block.first * width;
    std::transform(dk.begin(), dk.end(), grad_k + own, [](A x) { return static_cast<T>(x); });
    std::transform(dv.begin(), dv.end(), grad_v + own, [](A x) { return static_cast<T>(x); });
  }
}

#define POTLOC_INSTANTIATE(T, A)                                                      \
  template void local_attention_forward<T, A>(                                        \
      const LocalAttention&, const T*, const T*, const T*, T*, A*, int64_t, int64_t); \
  template void local_attention_backward<T, A>(                                       \
      const LocalAttention&, const T*, const T*, const T*, const T*, const A*, T*, T*, T*, int64_t, int64_t);
POTLOC_INSTANTIATE(float, float)
POTLOC_INSTANTIATE(double, double)
POTLOC_INSTANTIATE(BFloat16, float)
POTLOC_INSTANTIATE(Half, float)

}  // namespace potloc::cpu::POTLOC_CAPABILITY
