// Banded softmax attention a row at a time. 16 lanes share a row: lane l has its elements l, l + 16, ... The band is
// walked once, keys and values read through the cache, so windows have any width and rows any alignment. A block owns
// 32 positions. The kernels of float32 and float64, and of what tensor cores are not used for.
#pragma once

#include <cmath>
#include <limits>

#include "cuda/local_attention.h"
#include "cuda/platform.h"

namespace potloc::cuda {

constexpr int kRowLanes = 16;

template <typename A>
constexpr A kNothing = -std::numeric_limits<A>::infinity();  // the score of a key that is left out, the lse of no key

// Which (batch, head) a block works on, and the first of the positions that it owns.
struct Block {
  int64_t batch, head, sequence, first;
  const bool* key_mask;  // of the batch, or null

  __device__ Block(const LocalAttention& call, int owned) {
    const auto blocks = static_cast<unsigned>((call.length + owned - 1) / owned);
    const auto heads = static_cast<unsigned>(call.heads);
    sequence = blockIdx.x / blocks;
    batch = static_cast<unsigned>(sequence) / heads;
    head = static_cast<unsigned>(sequence) % heads;
    first = static_cast<int64_t>(blockIdx.x % blocks) * owned;
    key_mask = call.key_mask == nullptr ? nullptr : call.key_mask + batch * call.length;
  }

  __device__ bool is_key(int64_t t) const {
    return key_mask == nullptr || key_mask[t];
  }
};

// The [T, D] matrix of one (batch, head).
template <typename T>
struct Matrix {
  T* data;
  int64_t stride;

  __device__ Matrix(const Strided<T>& tensor, const Block& block)
      : data(tensor.data + block.batch * tensor.stride[0] + block.head * tensor.stride[1]), stride(tensor.stride[2]) {
  }

  __device__ T* row(int64_t t) const {
    return data + t * stride;
  }
};

// The elements of a row that a result is wanted for.
struct Columns {
  int begin, end;
};

template <typename T, typename A, int kElements>
__device__ void load_row(A (&x)[kElements], const T* row, int64_t width) {
#pragma unroll
  for (int e = 0; e < kElements; ++e) {
    const int d = static_cast<int>(threadIdx.x) % kRowLanes + e * kRowLanes;
    x[e] = d < width ? static_cast<A>(row[d]) : A(0);
  }
}

template <typename T, typename A, int kElements>
__device__ void store_row(T* row, const A (&x)[kElements], A factor, Columns columns) {
#pragma unroll
  for (int e = 0; e < kElements; ++e) {
    const int d = static_cast<int>(threadIdx.x) % kRowLanes + e * kRowLanes;
    if (d >= columns.begin && d < columns.end) {
      row[d] = static_cast<T>(x[e] * factor);
    }
  }
}

template <typename A, int kElements>
__device__ A dot(const A (&x)[kElements], const A (&y)[kElements]) {
  A sum = 0;
#pragma unroll
  for (int e = 0; e < kElements; ++e) {
    sum += x[e] * y[e];
  }
  const unsigned lanes = 0xffffu << (threadIdx.x & kRowLanes);
#pragma unroll
  for (int bits = kRowLanes / 2; bits > 0; bits /= 2) {
    sum += __shfl_xor_sync(lanes, sum, bits);
  }
  return sum;
}

template <typename A, int kElements>
__device__ void add(A (&sum)[kElements], A weight, const A (&x)[kElements]) {
#pragma unroll
  for (int e = 0; e < kElements; ++e) {
    sum[e] += weight * x[e];
  }
}

// Calls f(j) for each position j in the band of i.
template <typename F>
__device__ void walk_band(const LocalAttention& call, int64_t i, F&& f) {
  const int64_t last = i + call.radius < call.length ? i + call.radius : call.length - 1;
  for (int64_t j = i > call.radius ? i - call.radius : 0; j <= last; ++j) {
    f(j);
  }
}

// The output of query i, with a running maximum; returns its log-sum-exp.
template <int kElements, typename T, typename A>
__device__ A forward_row(
    const LocalAttention& call, const Block& block, const Matrix<const T>& queries, const Matrix<const T>& keys,
    const Matrix<const T>& values, int64_t i, T* out, Columns columns) {
  A query[kElements], other[kElements], sum[kElements] = {}, highest = kNothing<A>, total = 0;
  load_row(query, queries.row(i), call.width);
  walk_band(call, i, [&](int64_t j) {
    if (!block.is_key(j)) {
      return;
    }
    load_row(other, keys.row(j), call.width);
    const A score = static_cast<A>(call.scale) * dot(query, other);
    if (score > highest) {
      const A rescale = std::exp(highest - score);
      total *= rescale;
#pragma unroll
      for (int e = 0; e < kElements; ++e) {
        sum[e] *= rescale;
      }
      highest = score;
    }
    const A weight = std::exp(score - highest);
    total += weight;
    load_row(other, values.row(j), call.width);
    add(sum, weight, other);
  });
  store_row(out, sum, total == 0 ? A(0) : 1 / total, columns);
  return highest + std::log(total);
}

// dq of query i; returns its delta, the sum over its keys of P * dP.
template <int kElements, typename T, typename A>
__device__ A query_grad_row(
    const LocalAttention& call, const Block& block, const Matrix<const T>& grads, const Matrix<const T>& queries,
    const Matrix<const T>& keys, const Matrix<const T>& values, int64_t i, A log_sum, T* grad_q, Columns columns) {
  A query[kElements], grad[kElements], other[kElements], slopes[kElements] = {}, means[kElements] = {}, delta = 0;
  load_row(query, queries.row(i), call.width);
  load_row(grad, grads.row(i), call.width);
  walk_band(call, i, [&](int64_t j) {
    if (log_sum == kNothing<A> || !block.is_key(j)) {
      return;
    }
    load_row(other, values.row(j), call.width);
    const A slope = dot(grad, other);
    load_row(other, keys.row(j), call.width);
    const A weight = std::exp(static_cast<A>(call.scale) * dot(query, other) - log_sum);
    delta += weight * slope;
    add(slopes, weight * slope, other);
    add(means, weight, other);
  });
  add(slopes, -delta, means);
  store_row(grad_q, slopes, static_cast<A>(call.scale), columns);
  return delta;
}

// dk and dv of key j, from the log-sum-exp and delta of the queries of its band.
template <int kElements, typename T, typename A>
__device__ void key_grad_row(
    const LocalAttention& call, const Block& block, const Matrix<const T>& grads, const Matrix<const T>& queries,
    const Matrix<const T>& keys, const Matrix<const T>& values, int64_t j, const A* lse, const A* delta, T* grad_k,
    T* grad_v, Columns columns) {
  A key[kElements], value[kElements], query[kElements], grad[kElements], dk[kElements] = {}, dv[kElements] = {};
  load_row(key, keys.row(j), call.width);
  load_row(value, values.row(j), call.width);
  walk_band(call, j, [&](int64_t i) {
    if (lse[i] == kNothing<A> || !block.is_key(j)) {
      return;
    }
    load_row(query, queries.row(i), call.width);
    load_row(grad, grads.row(i), call.width);
    const A weight = std::exp(static_cast<A>(call.scale) * dot(query, key) - lse[i]);
    add(dk, weight * (dot(grad, value) - delta[i]), query);
    add(dv, weight, grad);
  });
  store_row(grad_k, dk, static_cast<A>(call.scale), columns);
  store_row(grad_v, dv, A(1), columns);
}

constexpr int kOwnedRows = 32, kRowThreads = 128;

// Calls f(t) for each position that the block owns, 16 lanes a row.
template <typename F>
__device__ void for_each_owned_row(const LocalAttention& call, const Block& block, F&& f) {
  for (int row = threadIdx.x / kRowLanes; row < kOwnedRows; row += kRowThreads / kRowLanes) {
    if (block.first + row < call.length) {
      f(block.first + row);
    }
  }
}

template <int kElements, typename T, typename A>
__global__ void __launch_bounds__(kRowThreads, 1) forward_rows_kernel(
    LocalAttention call, Strided<const T> q, Strided<const T> k, Strided<const T> v, Strided<T> out, A* lse) {
  const Block block(call, kOwnedRows);
  const Matrix<const T> queries(q, block), keys(k, block), values(v, block);
  const Matrix<T> target(out, block);
  const Columns columns{0, static_cast<int>(call.width)};
  for_each_owned_row(call, block, [&](int64_t t) {
    lse[block.sequence * call.length + t] =
        forward_row<kElements, T, A>(call, block, queries, keys, values, t, target.row(t), columns);
  });
}

template <int kElements, typename T, typename A>
__global__ void __launch_bounds__(kRowThreads, 1) query_grad_rows_kernel(
    LocalAttention call, Strided<const T> grad_out, Strided<const T> q, Strided<const T> k, Strided<const T> v,
    const A* lse, A* delta, Strided<T> grad_q) {
  const Block block(call, kOwnedRows);
  const Matrix<const T> grads(grad_out, block), queries(q, block), keys(k, block), values(v, block);
  const Matrix<T> target(grad_q, block);
  const Columns columns{0, static_cast<int>(call.width)};
  for_each_owned_row(call, block, [&](int64_t t) {
    const int64_t row = block.sequence * call.length + t;
    delta[row] =
        query_grad_row<kElements, T, A>(call, block, grads, queries, keys, values, t, lse[row], target.row(t), columns);
  });
}

template <int kElements, typename T, typename A>
__global__ void __launch_bounds__(kRowThreads, 1) key_grad_rows_kernel(
    LocalAttention call, Strided<const T> grad_out, Strided<const T> q, Strided<const T> k, Strided<const T> v,
    const A* lse, const A* delta, Strided<T> grad_k, Strided<T> grad_v) {
  const Block block(call, kOwnedRows);
  const Matrix<const T> grads(grad_out, block), queries(q, block), keys(k, block), values(v, block);
  const Matrix<T> key_target(grad_k, block), value_target(grad_v, block);
  const Columns columns{0, static_cast<int>(call.width)};
  const int64_t sequence = block.sequence * call.length;
  for_each_owned_row(call, block, [&](int64_t t) {
    key_grad_row<kElements, T, A>(
        call, block, grads, queries, keys, values, t, lse + sequence, delta + sequence, key_target.row(t),
        value_target.row(t), columns);
  });
}

}  // namespace potloc::cuda
