// Sigmoid focal loss, element by element: alpha_t m^gamma BCE(p, t) with p = sigmoid(x), q = 1 - p and m = 1 - p_t =
// t q + (1 - t) p. With a = e^-|x|, p and q are 1 / (1 + a) and a / (1 + a), and BCE = max(x, 0) - t x + log(1 + a):
// nothing overflows and nothing cancels for any finite logit.
//
// A thread takes 16 bytes of logits, four times; a block 256 times as much, whatever the GPU. A block's losses add up
// to a partial sum; a second kernel, of one block, adds those up in a fixed order, in double.

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <limits>
#include <type_traits>

#include "cuda/log_space.h"
#include "cuda/reduce.h"
#include "cuda/sigmoid_focal_loss.h"

namespace potloc::cuda {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

constexpr int kThreads = 256, kVectors = 4, kFinishThreads = 512;
template <typename T>
constexpr int kLanes = 16 / sizeof(T);
template <typename T>
constexpr int64_t kChunk = int64_t{kThreads} * kVectors * kLanes<T>;

template <typename T>
struct alignas(16) Vector {
  T at[kLanes<T>];
};

// Up to kLanes elements from `from`; 16 bytes at once where they are there and aligned.
template <typename T>
__device__ Vector<T> load(const T* from, int64_t left, bool aligned) {
  if (aligned && left >= kLanes<T>) {
    return *reinterpret_cast<const Vector<T>*>(from);
  }
  Vector<T> vector;
#pragma unroll
  for (int i = 0; i < kLanes<T>; ++i) {
    vector.at[i] = i < left ? from[i] : static_cast<T>(0.0f);
  }
  return vector;
}

template <typename T>
__device__ void store(const Vector<T>& vector, T* to, int64_t left) {
  if (left >= kLanes<T>) {
    *reinterpret_cast<Vector<T>*>(to) = vector;
    return;
  }
#pragma unroll
  for (int i = 0; i < kLanes<T>; ++i) {
    if (i < left) {
      to[i] = vector.at[i];
    }
  }
}

// What both passes read, and the weights of a target of 1 and of 0.
template <typename T, typename A>
struct Input {
  const T *logits, *targets;
  int64_t size;
  A hit, miss, gamma;
  bool aligned;

  // Calls `f(i, left, x, t)` for each vector of the block, which begins at i and has `left` elements before the end.
  template <typename F>
  __device__ void for_each_vector(F&& f) const {
#pragma unroll 1
    for (int step = 0; step < kVectors; ++step) {
      const int64_t i = blockIdx.x * kChunk<T> + (step * kThreads + static_cast<int>(threadIdx.x)) * kLanes<T>;
      if (i < size) {
        f(i, size - i, load(logits + i, size - i, aligned), load(targets + i, size - i, aligned));
      }
    }
  }

  __device__ A balance(A target) const {
    return std::fma(target, hit - miss, miss);
  }
};

// `m` is what p_t lacks to 1.
template <typename A>
struct Element {
  A p, q, m, entropy;

  __device__ Element(A x, A t) {
    const A a = exp_nonpositive(-std::abs(x)), large = reciprocal(1 + a), small = a * large;
    p = x >= 0 ? large : small;
    q = x >= 0 ? small : large;
    m = std::fma(t, q, (1 - t) * p);
    entropy = std::fma(-t, x, std::fmax(x, A(0))) - log1m(small);
  }

  // m where its logarithm and inverse exist; below, the entropy is 0.
  __device__ A normal_m() const {
    return std::fmax(m, std::numeric_limits<A>::min());
  }

  template <bool kSquare>
  __device__ A modulation(A gamma) const {
    return kSquare ? m * m : exp_nonpositive(gamma * log_coarse(normal_m()));
  }
};

template <bool kSquare, typename A>
__device__ A slope(const Element<A>& e, A t, A gamma) {
  // The slope of the entropy is p - t, written without cancellation; that of m is (1 - 2t) p q. The entropy meets p q
  // first: gamma times it may be infinite, where p q is 0.
  const A entropy_slope = (1 - t) * e.p - t * e.q, weight = gamma * (1 - 2 * t);
  if constexpr (kSquare) {
    return e.m * (e.m * entropy_slope + weight * (e.entropy * e.p * e.q));
  } else {
    const A quotient = e.p * e.q * reciprocal(e.normal_m());  // at most 1; p q times the entropy may underflow
    return e.template modulation<false>(gamma) * (entropy_slope + weight * (e.entropy * quotient));
  }
}

// Writes each element's loss, or where `loss` is null the block's sum.
template <typename T, typename A, bool kSquare>
__global__ void __launch_bounds__(kThreads) forward_kernel(Input<T, A> input, T* loss, A* partial) {
  A sum[1] = {0};
  input.for_each_vector([&](int64_t i, int64_t left, const Vector<T>& x, const Vector<T>& t) {
    Vector<T> value;
#pragma unroll
    for (int lane = 0; lane < kLanes<T>; ++lane) {
      const A target = static_cast<A>(t.at[lane]);
      const Element<A> e(static_cast<A>(x.at[lane]), target);
      const A one = input.balance(target) * e.template modulation<kSquare>(input.gamma) * e.entropy;
      sum[0] += lane < left ? one : A(0);
      value.at[lane] = static_cast<T>(one);
    }
    if (loss != nullptr) {
      store(value, loss + i, left);
    }
  });
  if (loss == nullptr) {
    block_sum(sum, shared_memory<A>());
    if (threadIdx.x == 0) {
      partial[blockIdx.x] = sum[0];
    }
  }
}

template <typename T, typename A>
__global__ void __launch_bounds__(kFinishThreads)
    finish_kernel(const A* partial, int64_t chunks, double divisor, T* loss) {
  double sum[1] = {0};
#pragma unroll 8
  for (int64_t i = threadIdx.x; i < chunks; i += kFinishThreads) {
    sum[0] += partial[i];
  }
  block_sum(sum, shared_memory<double>());
  if (threadIdx.x == 0) {
    *loss = static_cast<T>(static_cast<A>(sum[0] / divisor));
  }
}

template <typename T, typename A, bool kSquare>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(Input<T, A> input, const T* grad, bool scalar_grad, bool grad_aligned, A factor, T* grad_logits) {
  const A scalar = scalar_grad ? static_cast<A>(*grad) : A(0);
  input.for_each_vector([&](int64_t i, int64_t left, const Vector<T>& x, const Vector<T>& t) {
    const Vector<T> g = scalar_grad ? Vector<T>() : load(grad + i, left, grad_aligned);
    Vector<T> value;
#pragma unroll
    for (int lane = 0; lane < kLanes<T>; ++lane) {
      const A target = static_cast<A>(t.at[lane]);
      const Element<A> e(static_cast<A>(x.at[lane]), target);
      const A incoming = (scalar_grad ? scalar : static_cast<A>(g.at[lane])) * factor;
      value.at[lane] = static_cast<T>(incoming * input.balance(target) * slope<kSquare>(e, target, input.gamma));
    }
    store(value, grad_logits + i, left);
  });
}

bool is_aligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

template <typename A, typename T>
Input<T, A> input_of(const SigmoidFocalLoss<T>& call) {
  const double hit = call.alpha < 0 ? 1 : call.alpha, miss = call.alpha < 0 ? 1 : 1 - call.alpha;
  return {
      call.logits,
      call.targets,
      call.size,
      static_cast<A>(hit),
      static_cast<A>(miss),
      static_cast<A>(call.gamma),
      is_aligned(call.logits) && is_aligned(call.targets)};
}

template <typename T, typename A>
void launch_forward(const SigmoidFocalLoss<T>& call, T* loss, A* partial, Stream stream) {
  const Grid grid{
      blocks_for(call.size, kChunk<T>), kThreads, sizeof(A) * kThreads / kWarp, static_cast<cudaStream_t>(stream)};
  const auto kernel = call.gamma == 2 ? forward_kernel<T, A, true> : forward_kernel<T, A, false>;
  launch("sigmoid_focal_loss", kernel, grid, input_of<A>(call), loss, partial);
}

}  // namespace

template <typename T>
int64_t sigmoid_focal_loss_chunks(int64_t size) {
  return blocks_for(size, kChunk<T>);
}

template <typename T, typename A>
void sigmoid_focal_loss_forward(const SigmoidFocalLoss<T>& call, T* loss, Stream stream) {
  launch_forward<T, A>(call, loss, nullptr, stream);
}

template <typename T, typename A>
void sigmoid_focal_loss_forward(const SigmoidFocalLoss<T>& call, A* partial, double divisor, T* loss, Stream stream) {
  if (call.size > 0) {
    launch_forward<T, A>(call, nullptr, partial, stream);
  }
  const Grid one_block{1, kFinishThreads, sizeof(double) * kFinishThreads / kWarp, static_cast<cudaStream_t>(stream)};
  launch(
      "sigmoid_focal_loss", finish_kernel<T, A>, one_block, partial, sigmoid_focal_loss_chunks<T>(call.size), divisor,
      loss);
}

template <typename T, typename A>
void sigmoid_focal_loss_backward(
    const SigmoidFocalLoss<T>& call, const T* grad, bool scalar_grad, double factor, T* grad_logits, Stream stream) {
  const Grid grid{blocks_for(call.size, kChunk<T>), kThreads, 0, static_cast<cudaStream_t>(stream)};
  const auto kernel = call.gamma == 2 ? backward_kernel<T, A, true> : backward_kernel<T, A, false>;
  launch(
      "sigmoid_focal_loss", kernel, grid, input_of<A>(call), grad, scalar_grad, is_aligned(grad),
      static_cast<A>(factor), grad_logits);
}

#define POTLOC_INSTANTIATE(T, A)                                                                      \
  template int64_t sigmoid_focal_loss_chunks<T>(int64_t);                                             \
  template void sigmoid_focal_loss_forward<T, A>(const SigmoidFocalLoss<T>&, T*, Stream);             \
  template void sigmoid_focal_loss_forward<T, A>(const SigmoidFocalLoss<T>&, A*, double, T*, Stream); \
  template void sigmoid_focal_loss_backward<T, A>(const SigmoidFocalLoss<T>&, const T*, bool, double, T*, Stream);
POTLOC_INSTANTIATE(float, float)
POTLOC_INSTANTIATE(double, double)
POTLOC_INSTANTIATE(BFloat16, float)
POTLOC_INSTANTIATE(Half, float)

}  // namespace potloc::cuda
