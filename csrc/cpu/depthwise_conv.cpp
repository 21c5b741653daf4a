// Depthwise convolutions of width 3, block by block of time, a tile of channels after the other; each row of x and of
// the gradients comes from memory once. A row that is padded, or beyond the ends, is a row of zeros that lies ready.

#include "cpu/depthwise_conv.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <type_traits>
#include <vector>

#include "cpu/convert.h"

namespace potloc::cpu::POTLOC_CAPABILITY {
namespace {

// Channels of a tile: enough for the processor to fetch rows ahead.
constexpr int64_t kTile = 512;

template <typename A>
using Tile = A[kTile];

template <typename A>
alignas(64) constexpr Tile<A> kZeros = {};

// The rows of one tile in the type that they accumulate in. Those of half types are converted when first asked for; a
// row is good until the third one after it is.
template <typename T, typename A>
class Rows {
 public:
  Rows(const T* first, int64_t step, int64_t count, int64_t width)
      : first_(first), step_(step), count_(count), width_(width) {
  }

  const A* operator[](int64_t t) {
    if (t < 0 || t >= count_) {
      return kZeros<A>;
    }
    const T* row = first_ + t * step_;
    if constexpr (std::is_same_v<T, A>) {
      return row;
    } else {
      A* slot = converted_[t % 3];
      if (held_[t % 3] != t) {
        convert(row, slot, width_);
        held_[t % 3] = t;
      }
      return slot;
    }
  }

 private:
  const T* first_;
  int64_t step_, count_, width_;
  int64_t held_[3] = {-1, -1, -1};
  alignas(64) Tile<A> converted_[std::is_same_v<T, A> ? 1 : 3];
};

// Calls `f(block, recording, first_row, last_row, first_channel, channels)` for each tile of the blocks [begin, end).
template <typename F>
void for_each_tile(const DepthwiseConv& call, int64_t rows, int64_t begin, int64_t end, F&& f) {
  const int64_t blocks = (rows + kDepthwiseBlock - 1) / kDepthwiseBlock;
  for (int64_t block = begin; block < end; ++block) {
    const int64_t first = block % blocks * kDepthwiseBlock, last = std::min(rows, first + kDepthwiseBlock);
    for (int64_t c = 0; c < call.channels; c += kTile) {
      f(block, block / blocks, first, last, c, std::min(kTile, call.channels - c));
    }
  }
}

}  // namespace

template <typename T, typename A>
void depthwise_conv_forward(
    const DepthwiseConv& call, const T* x, const A* weight, T* const* out, int64_t begin, int64_t end) {
  const int64_t channels = call.channels, out_length = call.out_length();
  alignas(64) Tile<A> sum;
  const auto tile = [&](int64_t, int64_t b, int64_t first, int64_t last, int64_t c, int64_t width) {
    Rows<T, A> rows(x + b * call.length * channels + c, channels, call.length, width);
    const bool* mask = call.mask == nullptr ? nullptr : call.mask + b * call.length;
    const auto row = [&](int64_t s) {
      return s < 0 || s >= call.length || (mask != nullptr && !mask[s]) ? kZeros<A> : rows[s];
    };
    for (int64_t t = first; t < last; ++t) {
      const int64_t s = t * call.stride;
      const A *before = row(s - 1), *here = row(s), *after = row(s + 1);
      for (int64_t n = 0; n < call.filters; ++n) {
        const A *w0 = weight + 3 * n * channels + c, *w1 = w0 + channels, *w2 = w1 + channels;
#pragma omp simd
        for (int64_t i = 0; i < width; ++i) {
          sum[i] = w0[i] * before[i] + w1[i] * here[i] + w2[i] * after[i];
        }
        convert(sum, out[n] + (b * out_length + t) * channels + c, width);
      }
    }
  };
  for_each_tile(call, out_length, begin, end, tile);
}

template <typename T, typename A>
void depthwise_conv_backward(
    const DepthwiseConv& call, const T* const* grad, const T* x, const A* weight, T* grad_x, A* partial, int64_t begin,
    int64_t end) {
  const int64_t channels = call.channels, out_length = call.out_length();
  alignas(64) Tile<A> sum;
  const auto tile = [&](int64_t block, int64_t b, int64_t first, int64_t last, int64_t c, int64_t width) {
    Rows<T, A> rows(x + b * call.length * channels + c, channels, call.length, width);
    const bool* mask = call.mask == nullptr ? nullptr : call.mask + b * call.length;
    std::vector<Rows<T, A>> grads;
    for (int64_t n = 0; n < call.filters; ++n) {
      grads.emplace_back(grad[n] + b * out_length * channels + c, channels, out_length, width);
    }
    A* share = partial + block * 3 * call.filters * channels + c;
    for (int64_t tap = 0; tap < 3 * call.filters; ++tap) {
      std::fill_n(share + tap * channels, width, A(0));
    }
    // Whether a tap of the output meets this row: with stride 2 every other one is not there.
    const auto is_row = [&](int64_t s) { return s >= 0 && s % call.stride == 0 && s / call.stride < out_length; };
    for (int64_t s = first; s < last; ++s) {
      T* to = grad_x + (b * call.length + s) * channels + c;
      if (mask != nullptr && !mask[s]) {
        std::fill_n(to, width, static_cast<T>(0.0f));
        continue;
      }
      const A* here = rows[s];
      std::fill_n(sum, width, A(0));
      const bool met[3] = {is_row(s + 1), is_row(s), is_row(s - 1)};
      for (int64_t n = 0; n < call.filters; ++n) {
        const A* w = weight + 3 * n * channels + c;
        A* shares = share + 3 * n * channels;
        if (met[0] && met[1] && met[2]) {
          const A *g0 = grads[n][s + 1], *g1 = grads[n][s], *g2 = grads[n][s - 1];
          const A *w0 = w, *w1 = w0 + channels, *w2 = w1 + channels;
          A *share0 = shares, *share1 = share0 + channels, *share2 = share1 + channels;
#pragma omp simd
          for (int64_t i = 0; i < width; ++i) {
            sum[i] += w0[i] * g0[i] + w1[i] * g1[i] + w2[i] * g2[i];
            share0[i] += g0[i] * here[i];
            share1[i] += g1[i] * here[i];
            share2[i] += g2[i] * here[i];
          }
          continue;
        }
        // Tap by tap, without those that meet no row: zero times infinity would be NaN.
        for (int64_t k = 0; k < 3; ++k) {
          if (met[k]) {
            const A *g = grads[n][(s + 1 - k) / call.stride], *tap = w + k * channels;
            A* own = shares + k * channels;
#pragma omp simd
            for (int64_t i = 0; i < width; ++i) {
              sum[i] += tap[i] * g[i];
              own[i] += g[i] * here[i];
            }
          }
        }
      }
      convert(sum, to, width);
    }
  };
  for_each_tile(call, call.length, begin, end, tile);
}

#define POTLOC_INSTANTIATE(T, A)                                                                                     \
  template void depthwise_conv_forward<T, A>(const DepthwiseConv&, const T*, const A*, T* const*, int64_t, int64_t); \
  template void depthwise_conv_backward<T, A>(                                                                       \
      const DepthwiseConv&, const T* const*, const T*, const A*, T*, A*, int64_t, int64_t);
POTLOC_INSTANTIATE(float, float)
POTLOC_INSTANTIATE(double, double)
POTLOC_INSTANTIATE(BFloat16, float)
POTLOC_INSTANTIATE(Half, float)

}  // namespace potloc::cpu::POTLOC_CAPABILITY
