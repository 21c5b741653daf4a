// L_Act and L_BG on the fused probability P = sigmoid(x) sigmoid(-z), x a class's logit and z the background's. With
// a = e^-|x|, b = e^-|z| and w = a + b + a b, P = n m / (1 + w) where n is 1 or a, and m 1 or b; Q = 1 - P, and where
// P > 1/2, w / (1 + w). The larger one's logarithm is log1p(-the smaller), the smaller one's is far from 0. Slopes:
//   d log P = sigmoid(-x) dx - sigmoid(z) dz, d log Q = -(P / Q) d log P, with P / Q times either sigmoid at most 1.
//
// A block takes a tile of rows, a fixed number for each number of classes. It begins at a multiple of 16 bytes and is
// copied as it lies, 16 bytes at a time, to shared memory. There a thread, or a few, go through each row that takes
// part; the gradient takes the logits' place, and goes back likewise. Other rows are neither read nor computed.
// A tile's sums are partial sums; a second kernel, of one block, adds them up in a fixed order, in double.

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <limits>
#include <type_traits>

#include "cuda/fused_focal_loss.h"
#include "cuda/log_space.h"
#include "cuda/reduce.h"
#ifndef POTLOC_CUDA_HOST
#include <cuda_pipeline.h>
#endif

namespace potloc::cuda {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

constexpr int kThreads = 128, kWarps = kThreads / kWarp, kFinishThreads = 512;
// Blocks that a multiprocessor should have registers for: where it has room for their tiles, of 20 classes. The harness
// has no use for it.
template <typename A>
[[maybe_unused]] constexpr int kBlocks = sizeof(A) == sizeof(double) ? 4 : 10;
constexpr int64_t kTileBytes = 24 * 1024, kMostTileBytes = 47 * 1024;
// Where w is less than the one, which takes a z less than the other, P is 1, and Q = w = e^-x + e^z may underflow.
constexpr double kLeast = 1e-20, kFar = -46;
// Logarithms are no less: a product with one that is rounded must not be infinite, as 0 times it would be NaN.
template <typename A>
constexpr A kLowest = std::numeric_limits<A>::lowest() * A(1 - 1e-6);

// What a block shares; the tile lies behind it.
template <typename A>
struct alignas(16) Shared {
  unsigned positive[kWarps], background[kWarps], active[kWarps];  // a bit a row; active: either
  int order[kThreads];                                            // the active rows, then the others
  A factor[2], sums[2 * kWarps];
};

// The background's own probability sigmoid(z), and what a row's classes share.
template <typename A>
struct Background {
  A z, e, inverse, p, q;

  __device__ explicit Background(A z) : z(z), e(exp_nonpositive(-std::abs(z))), inverse(reciprocal(1 + e)) {
    p = (z >= 0 ? A(1) : e) * inverse;
    q = (z >= 0 ? e : A(1)) * inverse;
  }

  __device__ A log_p() const {
    return std::fmin(z, A(0)) + log1m(e * inverse);
  }

  __device__ A log_q() const {
    return std::fmin(-z, A(0)) + log1m(e * inverse);
  }
};

template <bool kFarBackground, typename A>
struct Fused {
  A p, q, log_p, log_q;
  A slope_x;         // d log P / dx = sigmoid(-x); d log P / dz is shared by the row
  A odds_x, odds_z;  // P / Q times sigmoid(-x) and sigmoid(z)

  __device__ Fused(A x, const Background<A>& row) {
    const A a = exp_nonpositive(-std::abs(x)), inverse_x = reciprocal(1 + a);
    const A w = std::fma(row.e, 1 + a, a), inverse = inverse_x * row.inverse;  // 1 / (1 + w)
    slope_x = (x >= 0 ? a : A(1)) * inverse_x;
    p = (x >= 0 ? A(1) : a) * inverse_x * row.q;
    const bool sure = p > A(0.5);
    q = sure ? w * p : 1 - p;
    const A larger = log1m(sure ? q : p);
    A rest = std::fmin(x, A(0)) - std::fmax(row.z, A(0));
    rest = rest < kLowest<A> ? kLowest<A> : rest;  // both logits may be so large that their sum is infinite
    const A smaller = log_coarse(sure ? q : inverse) + (sure ? A(0) : rest);
    log_p = sure ? larger : smaller;
    log_q = sure ? smaller : larger;
    const A odds = (sure ? A(1) : p) * reciprocal(sure ? w : q);
    odds_x = odds * slope_x;
    odds_z = odds * row.p;
    if (kFarBackground && sure && w < A(kLeast)) {
      // The larger of e^-x and e^z is taken out of their sum.
      const bool x_leads = x + row.z <= 0;
      const A other = exp_nonpositive(-std::abs(x + row.z)), share = reciprocal(1 + other);
      log_q = std::fmax(std::fmax(-x, row.z) + log_coarse(1 + other), kLowest<A>);
      odds_x = x_leads ? share : other * share;
      odds_z = x_leads ? other * share : share;
    }
  }
};

// d focal(p) / d log p for focal(p) = -q^gamma log p. As q -> 0, log p -> -q.
template <bool kSquare, typename A>
__device__ A focal_slope(A p, A q, A log_p, A log_q, A gamma) {
  if constexpr (kSquare) {
    return q * (2 * p * log_p - q);
  } else {
    const A quotient = q < A(kLeast) ? A(-1) : std::fmax(log_p * reciprocal(q), kLowest<A>);
    return power<false>(q, log_q, gamma) * (gamma * p * quotient - 1);
  }
}

// A tile of rows, and this thread's part in it.
template <typename T, typename A, bool kStaged>
struct Tile {
  Shared<A>& shared;
  int64_t first;
  int rows;             // in the tile
  int row;              // this thread's, from `first` on; -1 where it has none
  bool active;          // whether it is positive or background
  int part;             // the thread's first class
  const T *x, *target;  // of the row
  T* staged;            // the tile's logits in shared memory

  __device__ Tile(const FusedFocalLoss<T>& call, int split) : shared(*shared_memory<Shared<A>>()) {
    const int tile_rows = kThreads >> split, thread = static_cast<int>(threadIdx.x);
    const int classes = static_cast<int>(call.classes), width = classes + 1;
    first = static_cast<int64_t>(blockIdx.x) * tile_rows;
    rows = call.rows - first < tile_rows ? static_cast<int>(call.rows - first) : tile_rows;
    const bool positive = thread < rows && call.positive[first + thread];
    const bool background = thread < rows && call.background[first + thread];
    const bool is_active = positive || background;
    const unsigned positives = __ballot_sync(kAllLanes, positive);
    const unsigned backgrounds = __ballot_sync(kAllLanes, background);
    if (thread % kWarp == 0) {
      shared.positive[thread / kWarp] = positives;
      shared.background[thread / kWarp] = backgrounds;
      shared.active[thread / kWarp] = positives | backgrounds;
    }
    __syncthreads();

    int before = 0, count = 0;  // active rows before this thread's, and of the tile
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) {
      const int lanes = thread - warp * kWarp;
      const unsigned below = lanes >= kWarp ? kAllLanes : lanes > 0 ? (1u << lanes) - 1 : 0;
      before += __popc(shared.active[warp] & below);
      count += __popc(shared.active[warp]);
    }
    if (thread < rows) {
      shared.order[is_active ? before : count + thread - before] = thread;
    }
    staged = reinterpret_cast<T*>(&shared + 1);
    T* staged_targets = staged + tile_rows * width;
    if constexpr (kStaged) {
      stage(call.logits + first * width, staged, width, count == rows);
      stage(call.targets + first * classes, staged_targets, classes, count == rows);
      __pipeline_commit();
      __pipeline_wait_prior(0);
    }
    __syncthreads();

    const int place = thread >> split;
    row = place < rows ? shared.order[place] : -1;
    active = place < count;
    part = thread & ((1 << split) - 1);
    x = kStaged ? staged + row * width : call.logits + (first + row) * width;
    target = kStaged ? staged_targets + row * classes : call.targets + (first + row) * classes;
  }

  __device__ bool is_positive() const {
    return is_among(shared.positive, row);
  }

  __device__ bool is_background() const {
    return is_among(shared.background, row);
  }

 private:
  static __device__ bool is_among(const unsigned* words, int row) {
    return (words[row / kWarp] >> row % kWarp & 1) != 0;
  }

  // Copies what active rows need.
  __device__ void stage(const T* from, T* to, int width, bool all) const {
    constexpr int kVector = 16 / sizeof(T);
    const int size = rows * width, whole = size / kVector * kVector;
    all = all || width < kVector;  // else a vector touches two rows at most
    const unsigned inverse = all ? 0 : 0xffffffffu / width + 1;
    const auto is_needed = [&](int i) {
      return is_among(shared.active, static_cast<int>(static_cast<uint64_t>(i) * inverse >> 32));  // i / width
    };
    for (int i = kVector * static_cast<int>(threadIdx.x); i < whole; i += kVector * kThreads) {
      if (all || is_needed(i) || is_needed(i + kVector - 1)) {
        __pipeline_memcpy_async(to + i, from + i, 16);
      }
    }
    for (int i = whole + static_cast<int>(threadIdx.x); i < size; i += kThreads) {
      to[i] = from[i];
    }
  }
};

// Calls `f(c, t, fused)` for each class of a thread's, c from its first one on.
template <typename T, typename A, bool kStaged, typename F>
__device__ void for_each_class(
    const Tile<T, A, kStaged>& tile, const Background<A>& background, int classes, int split, F&& f) {
  const auto walk = [&](auto far) {
    const T *x = tile.x + tile.part, *target = tile.target + tile.part;
    // A count, so that the compiler can interleave two classes.
    const int step = 1 << split, count = (classes - tile.part + step - 1) >> split;
#pragma unroll 2
    for (int i = 0; i < count; ++i) {
      const int offset = i << split;
      const Fused<decltype(far)::value, A> fused(static_cast<A>(x[offset]), background);
      f(offset, static_cast<A>(target[offset]), fused);
    }
  };
  if (background.z < A(kFar)) {
    walk(std::true_type{});
  } else {
    walk(std::false_type{});
  }
}

template <typename T, typename A, bool kSquare, bool kStaged>
__global__ void __launch_bounds__(kThreads, kBlocks<A>)
    forward_kernel(FusedFocalLoss<T> call, int split, FusedFocalPartial<A>* partial) {
  const Tile<T, A, kStaged> tile(call, split);
  const int classes = static_cast<int>(call.classes);
  const A gamma = static_cast<A>(call.gamma);
  A sums[2] = {0, 0};
  if (tile.active) {
    const Background<A> background(static_cast<A>(tile.x[classes]));
    A act = 0, bg = 0;
    for_each_class(tile, background, classes, split, [&](int, A t, const auto& f) {
      const A hit = power<kSquare>(f.q, f.log_q, gamma) * f.log_p;
      const A miss = power<kSquare>(f.p, f.log_p, gamma) * f.log_q;
      act = std::fma(t, hit, std::fma(1 - t, miss, act));
      bg += miss;
    });
    if (tile.part == 0) {
      const A log_p = background.log_p();
      bg += power<kSquare>(background.q, background.log_q(), gamma) * log_p;
    }
    sums[0] = tile.is_positive() ? -act : A(0);
    sums[1] = tile.is_background() ? -bg : A(0);
  }
  block_sum(sums, tile.shared.sums);
  if (threadIdx.x == 0) {
    int positives = 0, backgrounds = 0;
    for (int warp = 0; warp < kWarps; ++warp) {
      positives += __popc(tile.shared.positive[warp]);
      backgrounds += __popc(tile.shared.background[warp]);
    }
    partial[blockIdx.x] = {{sums[0], sums[1]}, {static_cast<A>(positives), static_cast<A>(backgrounds)}};
  }
}

template <typename T, typename A>
__global__ void __launch_bounds__(kFinishThreads)
    finish_kernel(const FusedFocalPartial<A>* partial, int64_t tiles, T* loss_act, T* loss_bg, int64_t* counts) {
  double sums[4] = {0, 0, 0, 0};
#pragma unroll 8
  for (int64_t i = threadIdx.x; i < tiles; i += kFinishThreads) {
    const FusedFocalPartial<A> one = partial[i];
    sums[0] += one.loss[0];
    sums[1] += one.loss[1];
    sums[2] += one.count[0];
    sums[3] += one.count[1];
  }
  block_sum(sums, shared_memory<double>());
  if (threadIdx.x == 0) {
    *loss_act = static_cast<T>(static_cast<A>(sums[0] / std::fmax(sums[2], 1.0)));
    *loss_bg = static_cast<T>(static_cast<A>(sums[1] / std::fmax(sums[3], 1.0)));
    counts[0] = static_cast<int64_t>(sums[2]);
    counts[1] = static_cast<int64_t>(sums[3]);
  }
}

// The loss is hit * focal(P) + miss * focal(Q).
template <typename T, typename A, bool kSquare, bool kStaged>
__global__ void __launch_bounds__(kThreads, kBlocks<A>) backward_kernel(
    FusedFocalLoss<T> call, int split, const T* grad_act, const T* grad_bg, const int64_t* counts, T* grad_logits) {
  if (threadIdx.x == 0) {
    const auto factor = [](const T* grad, int64_t count) {
      return static_cast<A>(*grad) / static_cast<A>(count > 1 ? count : 1);
    };
    A* factors = shared_memory<Shared<A>>()->factor;
    factors[0] = factor(grad_act, counts[0]);
    factors[1] = factor(grad_bg, counts[1]);
  }
  const Tile<T, A, kStaged> tile(call, split);
  const int classes = static_cast<int>(call.classes), width = classes + 1;
  const A gamma = static_cast<A>(call.gamma);
  T* grad = kStaged ? tile.staged + tile.row * width : grad_logits + (tile.first + tile.row) * width;
  const A act = tile.active && tile.is_positive() ? tile.shared.factor[0] : A(0);
  const A bg = tile.active && tile.is_background() ? tile.shared.factor[1] : A(0);
  A grad_z = 0;
  if (act != 0 || bg != 0) {
    const Background<A> background(static_cast<A>(tile.x[classes]));
    T* own_grad = grad + tile.part;
    A sum = 0;
    for_each_class(tile, background, classes, split, [&](int c, A t, const auto& f) {
      const A weight = std::fma(act, 1 - t, bg) * power<kSquare>(f.p, f.log_p, gamma);
      const A slope = act * t * focal_slope<kSquare>(f.p, f.q, f.log_p, f.log_q, gamma);
      sum += slope;
      // log Q meets the slopes first: gamma times it may be infinite, where they are 0.
      grad_z -= weight * (f.odds_z - gamma * (f.log_q * background.p));
      own_grad[c] = static_cast<T>(std::fma(slope, f.slope_x, weight * (f.odds_x - gamma * (f.log_q * f.slope_x))));
    });
    grad_z -= sum * background.p;
    if (bg != 0 && tile.part == 0) {
      // d log b / dz = sigmoid(-z)
      grad_z += bg * background.q *
                focal_slope<kSquare>(background.p, background.q, background.log_p(), background.log_q(), gamma);
    }
  } else if (tile.row >= 0) {
    for (int c = tile.part; c < classes; c += 1 << split) {
      grad[c] = static_cast<T>(0.0f);
    }
  }
  for (int bits = (1 << split) / 2; bits > 0; bits /= 2) {
    grad_z += __shfl_xor_sync(kAllLanes, grad_z, bits);
  }
  if (tile.row >= 0 && tile.part == 0) {
    grad[classes] = static_cast<T>(grad_z);
  }
  if constexpr (kStaged) {
    __syncthreads();
    constexpr int kVector = 16 / sizeof(T);
    const int size = tile.rows * width, whole = size / kVector * kVector;
    T* to = grad_logits + tile.first * width;
    for (int i = kVector * static_cast<int>(threadIdx.x); i < whole; i += kVector * kThreads) {
      *reinterpret_cast<uint4*>(to + i) = *reinterpret_cast<const uint4*>(tile.staged + i);
    }
    for (int i = whole + static_cast<int>(threadIdx.x); i < size; i += kThreads) {
      to[i] = tile.staged[i];
    }
  }
}

int64_t tile_bytes(int split, int64_t classes, size_t element) {
  return (kThreads >> split) * (2 * classes + 1) * static_cast<int64_t>(element);
}

// 2^split threads go through a row: as few as keep the tile small, and the rows that meet in one bank of shared memory
// to four; those are as many as the power of 2 that divides the length of a row, of logits or targets.
template <typename T>
int split_for(int64_t classes) {
  int split = 0;
  while ((split < 4 && tile_bytes(split, classes, sizeof(T)) > kTileBytes) ||
         (split < 3 && classes * (classes + 1) % (8 << split) == 0)) {
    ++split;
  }
  return split;
}

// Calls `f(kSquare, kStaged, split, grid)`.
template <typename T, typename A, typename F>
void dispatch(const FusedFocalLoss<T>& call, const T* grad_logits, Stream stream, F&& f) {
  const int split = split_for<T>(call.classes);
  const int64_t bytes = tile_bytes(split, call.classes, sizeof(T));
  const auto aligned = [](const T* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; };
  const bool staged = bytes <= kMostTileBytes && aligned(call.logits) && aligned(call.targets) && aligned(grad_logits);
  const Grid grid{
      blocks_for(call.rows, kThreads >> split), kThreads, sizeof(Shared<A>) + (staged ? bytes : 0),
      static_cast<cudaStream_t>(stream)};
  const auto with_square = [&](auto square) {
    staged ? f(square, std::true_type{}, split, grid) : f(square, std::false_type{}, split, grid);
  };
  call.gamma == 2 ? with_square(std::true_type{}) : with_square(std::false_type{});
}

}  // namespace

template <typename T>
int64_t fused_focal_loss_tiles(int64_t rows, int64_t classes) {
  return blocks_for(rows, kThreads >> split_for<T>(classes));
}

template <typename T, typename A>
void fused_focal_loss_forward(
    const FusedFocalLoss<T>& call, FusedFocalPartial<A>* partial, T* loss_act, T* loss_bg, int64_t* counts,
    Stream stream) {
  if (call.rows > 0) {
    dispatch<T, A>(call, nullptr, stream, [&](auto square, auto staged, int split, const Grid& grid) {
      const auto kernel = forward_kernel<T, A, decltype(square)::value, decltype(staged)::value>;
      launch("fused_focal_loss", kernel, grid, call, split, partial);
    });
  }
  const Grid one_block{
      1, kFinishThreads, 4 * sizeof(double) * kFinishThreads / kWarp, static_cast<cudaStream_t>(stream)};
  launch(
      "fused_focal_loss", finish_kernel<T, A>, one_block, partial, fused_focal_loss_tiles<T>(call.rows, call.classes),
      loss_act, loss_bg, counts);
}

template <typename T, typename A>
void fused_focal_loss_backward(
    const FusedFocalLoss<T>& call, const T* grad_act, const T* grad_bg, const int64_t* counts, T* grad_logits,
    Stream stream) {
  dispatch<T, A>(call, grad_logits, stream, [&](auto square, auto staged, int split, const Grid& grid) {
    const auto kernel = backward_kernel<T, A, decltype(square)::value, decltype(staged)::value>;
    launch("fused_focal_loss", kernel, grid, call, split, grad_act, grad_bg, counts, grad_logits);
  });
}

#define POTLOC_INSTANTIATE(T, A)                                                  \
  template int64_t fused_focal_loss_tiles<T>(int64_t, int64_t);                   \
  template void fused_focal_loss_forward<T, A>(                                   \
      const FusedFocalLoss<T>&, FusedFocalPartial<A>*, T*, T*, int64_t*, Stream); \
  template void fused_focal_loss_backward<T, A>(                                  \
      const FusedFocalLoss<T>&, const T*, const T*, const int64_t*, T*, Stream);
POTLOC_INSTANTIATE(float, float)
POTLOC_INSTANTIATE(double, double)
POTLOC_INSTANTIATE(BFloat16, float)
POTLOC_INSTANTIATE(Half, float)

}  // namespace potloc::cuda
