// Depthwise convolutions of width 3: out[n][t] = sum_k w[n][k] x[t s + k - 1], channel by channel, for stride s.
//
// A thread owns a vector of neighbouring channels (16 bytes of x forward, of sums backward; one channel where C or an
// address does not allow it) and walks over kRows rows of time with the last three rows in registers: forward those of
// x, backward those of the gradients, which for stride 2 are as if there were rows of zeros in between. A warp's lanes
// hold neighbouring vectors, a block's warps stretches of time that follow each other.
// The gradient of the weights: a thread's sums over its stretch, then over the block's stretches in shared memory, then
// a second kernel over all blocks, each in a fixed order that the shapes alone decide.

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "cuda/depthwise_conv.h"
#include "cuda/platform.h"

namespace potloc::cuda {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

constexpr const char* kOp = "depthwise_conv";
constexpr int kThreads = 256, kRows = 8;
constexpr int kSumColumns = 32, kSumRows = 16;

template <typename T, int V>
struct alignas(V * sizeof(T) < 16 ? V * sizeof(T) : 16) Vector {
  T at[V];
};

template <typename A, typename T, int V>
__device__ Vector<A, V> load(const T* from) {
  const auto raw = *reinterpret_cast<const Vector<T, V>*>(from);
  Vector<A, V> values;
#pragma unroll
  for (int i = 0; i < V; ++i) {
    values.at[i] = static_cast<A>(raw.at[i]);
  }
  return values;
}

template <typename T, typename A, int V>
__device__ void store(const Vector<A, V>& values, T* to) {
  Vector<T, V> rounded;
#pragma unroll
  for (int i = 0; i < V; ++i) {
    rounded.at[i] = static_cast<T>(values.at[i]);
  }
  *reinterpret_cast<Vector<T, V>*>(to) = rounded;
}

template <typename A, int V>
__device__ Vector<A, V> zeros() {
  Vector<A, V> values;
#pragma unroll
  for (int i = 0; i < V; ++i) {
    values.at[i] = A(0);
  }
  return values;
}

template <typename A, int V>
__device__ void add_product(Vector<A, V>& sum, const Vector<A, V>& a, const Vector<A, V>& b) {
#pragma unroll
  for (int i = 0; i < V; ++i) {
    sum.at[i] += a.at[i] * b.at[i];
  }
}

template <typename P>
struct Pointers {
  P* at[kMostFilters];
};

// Where a thread works: blocks of `threads.y` stretches, recording after recording, in x; tiles of channels in y.
struct Place {
  int64_t recording, first_row, channel;

  __device__ Place(int64_t recordings, int lanes) {
    const int64_t block_rows = int64_t{kRows} * blockDim.y;
    const auto blocks = gridDim.x / static_cast<unsigned>(recordings);
    recording = blockIdx.x / blocks;
    first_row = blockIdx.x % blocks * block_rows + int64_t{kRows} * threadIdx.y;
    channel = (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * lanes;
  }
};

template <typename T, typename A, int N, int V>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(DepthwiseConv call, const T* x, const A* weight, Pointers<T> out) {
  const Place place(call.batch, V);
  const int64_t channels = call.channels, last = min(call.out_length, place.first_row + kRows);
  if (place.channel >= channels) {
    return;
  }
  const int64_t first_x = place.recording * call.length;
  const auto row = [&](int64_t s) {
    const bool read = s >= 0 && s < call.length && (call.mask == nullptr || call.mask[first_x + s]);
    return read ? load<A, T, V>(x + (first_x + s) * channels + place.channel) : zeros<A, V>();
  };
  Vector<A, V> w[N][3];
#pragma unroll
  for (int tap = 0; tap < 3 * N; ++tap) {
    w[tap / 3][tap % 3] = load<A, A, V>(weight + tap * channels + place.channel);
  }
  Vector<A, V> before = row(place.first_row * call.stride - 1), here = row(place.first_row * call.stride);
#pragma unroll 1
  for (int64_t t = place.first_row; t < last; ++t) {
    const Vector<A, V> after = row(t * call.stride + 1);
#pragma unroll
    for (int n = 0; n < N; ++n) {
      Vector<A, V> sum = zeros<A, V>();
      add_product(sum, w[n][0], before);
      add_product(sum, w[n][1], here);
      add_product(sum, w[n][2], after);
      store(sum, out.at[n] + (place.recording * call.out_length + t) * channels + place.channel);
    }
    before = call.stride == 1 ? here : after;
    here = call.stride == 1 ? after : row((t + 1) * call.stride);
  }
}

template <typename T, typename A, int N, int V>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(DepthwiseConv call, Pointers<const T> grad, const T* x, const A* weight, T* grad_x, A* partial) {
  const Place place(call.batch, V);
  const int64_t channels = call.channels, last = min(call.length, place.first_row + kRows);
  Vector<A, V> share[N][3];
#pragma unroll
  for (int tap = 0; tap < 3 * N; ++tap) {
    share[tap / 3][tap % 3] = zeros<A, V>();
  }
  if (place.channel < channels && place.first_row < last) {
    // Whether a tap of the output meets this row: with stride 2 every other one is not there.
    const auto is_row = [&](int64_t s) {
      const int64_t t = s >> (call.stride - 1);
      return s >= 0 && t << (call.stride - 1) == s && t < call.out_length;
    };
    const auto grad_row = [&](int n, int64_t s) {
      const T* row = grad.at[n] + (place.recording * call.out_length + (s >> (call.stride - 1))) * channels;
      return is_row(s) ? load<A, T, V>(row + place.channel) : zeros<A, V>();
    };
    Vector<A, V> w[N][3], g[N][3];  // g: the gradients that each tap meets
#pragma unroll
    for (int tap = 0; tap < 3 * N; ++tap) {
      w[tap / 3][tap % 3] = load<A, A, V>(weight + tap * channels + place.channel);
    }
#pragma unroll
    for (int n = 0; n < N; ++n) {
      g[n][1] = grad_row(n, place.first_row - 1);
      g[n][0] = grad_row(n, place.first_row);
    }
#pragma unroll 1
    for (int64_t s = place.first_row; s < last; ++s) {
      const int64_t row = place.recording * call.length + s;
      const bool real = call.mask == nullptr || call.mask[row];
      const Vector<A, V> here = real ? load<A, T, V>(x + row * channels + place.channel) : zeros<A, V>();
      Vector<A, V> sum = zeros<A, V>();
#pragma unroll
      for (int n = 0; n < N; ++n) {
        g[n][2] = g[n][1];
        g[n][1] = g[n][0];
        g[n][0] = grad_row(n, s + 1);
#pragma unroll
        for (int k = 0; k < 3; ++k) {
          if (real && is_row(s + 1 - k)) {  // else zero times infinity would be NaN
            add_product(sum, w[n][k], g[n][k]);
            add_product(share[n][k], here, g[n][k]);
          }
        }
      }
      store(sum, grad_x + row * channels + place.channel);
    }
  }
  auto* shared = shared_memory<Vector<A, V>>();
  const int lane = static_cast<int>(threadIdx.x), lanes = static_cast<int>(blockDim.x);
  const int stretch = static_cast<int>(threadIdx.y), stretches = static_cast<int>(blockDim.y);
#pragma unroll
  for (int tap = 0; tap < 3 * N; ++tap) {
    shared[(tap * stretches + stretch) * lanes + lane] = share[tap / 3][tap % 3];
  }
  __syncthreads();
  for (int i = stretch * lanes + lane; i < 3 * N * lanes; i += kThreads) {
    const int tap = i / lanes;
    const int64_t channel = place.channel + (i % lanes - lane) * V;
    Vector<A, V> sum = zeros<A, V>();
#pragma unroll 1
    for (int other = 0; other < stretches; ++other) {
      const Vector<A, V> one = shared[(tap * stretches + other) * lanes + i % lanes];
#pragma unroll
      for (int j = 0; j < V; ++j) {
        sum.at[j] += one.at[j];
      }
    }
    if (channel < channels) {
      store(sum, partial + (static_cast<int64_t>(blockIdx.x) * 3 * N + tap) * channels + channel);
    }
  }
}

// Adds up `count` rows of `width` values: a thread a slice of a column, then a thread a column.
template <typename A>
__global__ void __launch_bounds__(kSumColumns* kSumRows)
    sum_kernel(const A* partial, int64_t count, int64_t width, A* total) {
  A* shared = shared_memory<A>();
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kSumColumns + threadIdx.x;
  A sum = 0;
  if (column < width) {
#pragma unroll 4
    for (int64_t i = threadIdx.y; i < count; i += kSumRows) {
      sum += partial[i * width + column];
    }
  }
  shared[threadIdx.y * kSumColumns + threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y == 0 && column < width) {
    for (int other = 1; other < kSumRows; ++other) {
      sum += shared[other * kSumColumns + threadIdx.x];
    }
    total[column] = sum;
  }
}

// Blocks of as few lanes as the channels take, and stretches of time to make up kThreads.
Grid grid_for(const DepthwiseConv& call, int64_t rows, int lanes, Stream stream) {
  const int64_t vectors = (call.channels + lanes - 1) / lanes;
  unsigned across = kWarp;
  while (across > 1 && static_cast<int64_t>(across / 2) >= vectors) {
    across /= 2;
  }
  const unsigned stretches = kThreads / across;
  const dim3 blocks(
      static_cast<unsigned>(call.batch) * blocks_for(rows, int64_t{kRows} * stretches), blocks_for(vectors, across));
  return {blocks, dim3(across, stretches), 0, static_cast<cudaStream_t>(stream)};
}

template <typename T>
bool is_aligned(const T* pointer, int lanes) {
  return reinterpret_cast<uintptr_t>(pointer) % (lanes * sizeof(T)) == 0;
}

template <typename T, typename A, int N>
void forward(const DepthwiseConv& call, const T* x, const A* weight, const Pointers<T>& out, Stream stream) {
  constexpr int kLanes = 16 / sizeof(T);
  bool wide = call.channels % kLanes == 0 && is_aligned(x, kLanes) && is_aligned(weight, 16 / sizeof(A));
  for (int n = 0; n < N; ++n) {
    wide = wide && is_aligned(out.at[n], kLanes);
  }
  const auto kernel = wide ? forward_kernel<T, A, N, kLanes> : forward_kernel<T, A, N, 1>;
  launch(kOp, kernel, grid_for(call, call.out_length, wide ? kLanes : 1, stream), call, x, weight, out);
}

template <typename T, typename A, int N>
void backward(
    const DepthwiseConv& call, const Pointers<const T>& grad, const T* x, const A* weight, T* grad_x, A* grad_weight,
    const Workspace& workspace, Stream stream) {
  constexpr int kLanes = 16 / sizeof(A);
  bool wide =
      call.channels % kLanes == 0 && is_aligned(x, kLanes) && is_aligned(grad_x, kLanes) && is_aligned(weight, kLanes);
  for (int n = 0; n < N; ++n) {
    wide = wide && is_aligned(grad.at[n], kLanes);
  }
  const int lanes = wide ? kLanes : 1;
  Grid grid = grid_for(call, call.length, lanes, stream);
  grid.shared_bytes = sizeof(A) * 3 * N * kThreads * lanes;
  const int64_t width = 3 * N * call.channels;
  A* partial = take<A>(workspace, grid.blocks.x * width);
  const auto kernel = wide ? backward_kernel<T, A, N, kLanes> : backward_kernel<T, A, N, 1>;
  if (grid.blocks.x > 0) {
    launch(kOp, kernel, grid, call, grad, x, weight, grad_x, partial);
  }
  const Grid sums{
      blocks_for(width, kSumColumns), dim3(kSumColumns, kSumRows), sizeof(A) * kSumColumns * kSumRows, grid.stream};
  launch(kOp, sum_kernel<A>, sums, partial, grid.blocks.x, width, grad_weight);
}

}  // namespace

template <typename T, typename A>
void depthwise_conv_forward(const DepthwiseConv& call, const T* x, const A* weight, T* const* out, Stream stream) {
  Pointers<T> pointers{};
  for (int64_t n = 0; n < call.filters; ++n) {
    pointers.at[n] = out[n];
  }
  const auto with = call.filters == 1 ? forward<T, A, 1> : call.filters == 2 ? forward<T, A, 2> : forward<T, A, 3>;
  with(call, x, weight, pointers, stream);
}

template <typename T, typename A>
void depthwise_conv_backward(
    const DepthwiseConv& call, const T* const* grad, const T* x, const A* weight, T* grad_x, A* grad_weight,
    const Workspace& workspace, Stream stream) {
  Pointers<const T> pointers{};
  for (int64_t n = 0; n < call.filters; ++n) {
    pointers.at[n] = grad[n];
  }
  const auto with = call.filters == 1 ? backward<T, A, 1> : call.filters == 2 ? backward<T, A, 2> : backward<T, A, 3>;
  with(call, pointers, x, weight, grad_x, grad_weight, workspace, stream);
}

#define POTLOC_INSTANTIATE(T, A)                                                                           \
  template void depthwise_conv_forward<T, A>(const DepthwiseConv&, const T*, const A*, T* const*, Stream); \
  template void depthwise_conv_backward<T, A>(                                                             \
      const DepthwiseConv&, const T* const*, const T*, const A*, T*, A*, const Workspace&, Stream);
POTLOC_INSTANTIATE(float, float)
POTLOC_INSTANTIATE(double, double)
POTLOC_INSTANTIATE(BFloat16, float)
POTLOC_INSTANTIATE(Half, float)

}  // namespace potloc::cuda
