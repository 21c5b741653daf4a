// Banded softmax attention in register tiles of 4 positions. Two products make up both directions:
//   banded_dots: the dots of 4 rows with the rows of their bands. Lanes run over D; exactly the band is computed, since
//     the tile is a parallelogram, 4 positions by a few offsets, and no row outside a band can spoil a sum with NaN.
//   banded_sums: for 4 rows, the weighted sums of the rows of their bands.
// Scores and weights of a tile lie as [offset in the band][4 positions].
// A task is a block of positions of one (batch, head): forward it owns their queries; backward their queries (for dq)
// and keys (for dk, dv), and it looks at the queries up to `radius` away as well. Rows are read and written in place;
// what dtype, width, mask or an end of the sequence forbids, goes through zero-padded buffers that fit the L2 cache.
// Nothing is written by two tasks, so results do not depend on the number of threads.

#include "cpu/local_attention.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <memory>
#include <new>
#include <type_traits>

#include "cpu/convert.h"
#include "cpu/simd.h"
#include "cpu/vector_exp.h"

namespace potloc::cpu::POTLOC_CAPABILITY {
namespace {

constexpr int kTile = 4;
// What the registers hold beside the operands: kTile * kOffsets dots, kTile * kColumns vectors of sums.
constexpr int kOffsets = kVectorRegisters / 8, kColumns = kVectorRegisters / 8;
// Queries whose rows and bands are at hand at a time.
constexpr int64_t kChunk = 64;
template <typename A>
constexpr A kInfinity = std::numeric_limits<A>::infinity();

constexpr int64_t round_up(int64_t x, int64_t multiple) {
  return (x + multiple - 1) / multiple * multiple;
}

struct Free {
  void operator()(void* memory) const {
    std::free(memory);
  }
};

// `count` values, not initialised, at the start of a cache line.
template <typename A>
std::unique_ptr<A[], Free> allocate(int64_t count) {
  void* memory = std::aligned_alloc(64, round_up(count * sizeof(A), 64));
  if (memory == nullptr) {
    throw std::bad_alloc();
  }
  return std::unique_ptr<A[], Free>(static_cast<A*>(memory));
}

// Lane i: the sum of the lanes of x[i], for i < kCount, where kCount is the number of lanes.
template <typename A, int kCount = kLanes<A>>
[[gnu::always_inline]] inline Vector<A> sum_each(const Vector<A>* x) {
  if constexpr (kCount == 1) {
    return x[0];
  } else {
    // Halves the lanes that each sum is spread over.
    const Vector<A> low = sum_each<A, kCount / 2>(x), high = sum_each<A, kCount / 2>(x + kCount / 2);
    return pick<A, 0, 2>(low, high) + pick<A, 1, 2>(low, high);
  }
}

// Rows of a matrix; the distance from row to row is `stride`.
template <typename A>
struct Rows {
  A* data;
  int64_t stride;

  A* operator[](int64_t t) const {
    return data + t * stride;
  }
  Rows from(int64_t t) const {
    return {data + t * stride, stride};
  }
};

// Asks for the kTile rows from `first` on, which a later tile is the first to read: the products alone touch memory in
// a rhythm that leaves it idle half of the time. Rows of another dtype T are read by converting them, in one go.
template <typename T, typename A>
void prefetch_tile(Rows<const A> rows, int64_t width, int64_t first) {
  if constexpr (std::is_same_v<T, A>) {
    for (int64_t t = first; t < first + kTile; ++t) {
      for (int64_t d = 0; d < width; d += 64 / sizeof(A)) {
        __builtin_prefetch(rows[t] + d, 0, 2);
      }
    }
  }
}

// dots[o][i] = scale * (a[i] . b[i + o]) for i < kTile, o < offsets, a multiple of kOffsets; `width` is one of kLanes.
template <typename A>
void banded_dots(Rows<const A> a, Rows<const A> b, int64_t width, int64_t offsets, A scale, A* dots) {
  for (int64_t o = 0; o < offsets; o += kOffsets) {
    Vector<A> sums[kOffsets * kTile];
#pragma GCC unroll 16
    for (Vector<A>& sum : sums) {
      sum = Vector<A>{};
    }
    for (int64_t d = 0; d < width; d += kLanes<A>) {
#pragma GCC unroll 8
      for (int row = 0; row < kTile + kOffsets - 1; ++row) {
        const Vector<A> y = load(b[o + row] + d);
#pragma GCC unroll 4
        for (int i = 0; i < kTile; ++i) {
          if (row >= i && row - i < kOffsets) {
            sums[(row - i) * kTile + i] += load(a[i] + d) * y;
          }
        }
      }
    }
#pragma GCC unroll 4
    for (int first = 0; first < kOffsets * kTile; first += kLanes<A>) {
      store(dots + o * kTile + first, sum_each<A>(sums + first) * scale);
    }
  }
}

// target[i] = (add ? target[i] : 0) + sum over s of weights(s)[i * kStride] * source[s], for i < rows <= kTile and s
// from i to i + span, as far as low <= s < high; for columns [first, first + kVectors * kLanes).
template <int kStride, int kVectors, typename A, typename Weights>
[[gnu::always_inline]] inline void banded_sums_of(
    Rows<const A> source, int64_t first, int64_t span, int64_t low, int64_t high, const Weights& weights,
    Rows<A> target, int64_t rows, bool add) {
  Vector<A> sums[kTile][kVectors];
#pragma GCC unroll 4
  for (int i = 0; i < kTile; ++i) {
#pragma GCC unroll 4
    for (int c = 0; c < kVectors; ++c) {
      sums[i][c] = add && i < rows ? load(target[i] + first + c * kLanes<A>) : Vector<A>{};
    }
  }
  const auto add_to = [&](int i, int64_t s) __attribute__((always_inline)) {
#pragma GCC unroll 4
    for (int c = 0; c < kVectors; ++c) {
      sums[i][c] += broadcast(weights(s)[i * kStride]) * load(source[s] + first + c * kLanes<A>);
    }
  };
  const auto add_to_some = [&](int64_t s) __attribute__((always_inline)) {
#pragma GCC unroll 4
    for (int i = 0; i < kTile; ++i) {
      if (i <= s && s - i <= span) {
        add_to(i, s);
      }
    }
  };
  int64_t s = low;
  for (; s < std::min<int64_t>(high, kTile - 1); ++s) {
    add_to_some(s);
  }
  for (; s < std::min(high, span + 1); ++s) {
#pragma GCC unroll 4
    for (int i = 0; i < kTile; ++i) {
      add_to(i, s);
    }
  }
  for (; s < high; ++s) {
    add_to_some(s);
  }
#pragma GCC unroll 4
  for (int i = 0; i < kTile; ++i) {
    if (i < rows) {
#pragma GCC unroll 4
      for (int c = 0; c < kVectors; ++c) {
        store(target[i] + first + c * kLanes<A>, sums[i][c]);
      }
    }
  }
}

template <int kStride, typename A, typename Weights>
void banded_sums(
    Rows<const A> source, int64_t width, int64_t span, int64_t low, int64_t high, const Weights& weights,
    Rows<A> target, int64_t rows, bool add) {
  int64_t d = 0;
  for (; d + kColumns * kLanes<A> <= width; d += kColumns * kLanes<A>) {
    banded_sums_of<kStride, kColumns>(source, d, span, low, high, weights, target, rows, add);
  }
  for (; d < width; d += kLanes<A>) {
    banded_sums_of<kStride, 1>(source, d, span, low, high, weights, target, rows, add);
  }
}

// Every lane: the `combine` of the lanes that stand for its position.
template <typename A, typename Combine>
[[gnu::always_inline]] inline Vector<A> over_offsets(Vector<A> x, const Combine& combine) {
  if constexpr (kLanes<A> > 8) {
    x = combine(x, pick<A, 8, 1>(x, x));
  }
  if constexpr (kLanes<A> > 4) {
    x = combine(x, pick<A, 4, 1>(x, x));
  }
  return x;
}

// The sizes that every chunk shares.
template <typename A>
struct Sizes {
  int64_t width;    // D, padded to whole vectors
  int64_t window;   // offsets in the band
  int64_t offsets;  // the same, padded to whole tiles
  int64_t band;     // scores of a tile

  explicit Sizes(const LocalAttention& shape)
      : width(round_up(shape.width, kLanes<A>)),
        window(2 * shape.radius + 1),
        offsets(round_up(window, kOffsets)),
        band(offsets * kTile) {
  }

  // Rows of keys that banded_dots reads for `queries` queries.
  int64_t keys(int64_t queries) const {
    return round_up(queries, kTile) + offsets - 1;
  }
};

// Rows [first, first + count) of a [T, D] matrix as the products want them: in place where they are so already, else
// copied to `buffer`. Rows that `valid` leaves out become zeros.
template <typename T, typename A>
Rows<const A> read_rows(
    const LocalAttention& shape, Rows<const T> source, int64_t first, int64_t count, const bool* valid, int64_t width,
    A* buffer) {
  if constexpr (std::is_same_v<T, A>) {
    if (width == shape.width && std::all_of(valid, valid + count, [](bool x) { return x; })) {
      return source.from(first);
    }
  }
  for (int64_t t = 0; t < count; ++t) {
    A* const target = buffer + t * width;
    if (valid[t]) {
      convert(source[first + t], target, shape.width);
      std::fill(target + shape.width, target + width, A(0));
    } else {
      std::fill(target, target + width, A(0));
    }
  }
  return {buffer, width};
}

// Where the products write rows that belong at `target`: there, where they can, else in `buffer`.
template <typename T, typename A>
Rows<A> place_rows(const LocalAttention& shape, Rows<T> target, int64_t width, A* buffer) {
  if constexpr (std::is_same_v<T, A>) {
    if (width == shape.width) {
      return target;
    }
  }
  return {buffer, width};
}

// Moves rows from where place_rows has put them to where they belong.
template <typename T, typename A>
void finish_rows(const LocalAttention& shape, Rows<A> rows, int64_t count, Rows<T> target) {
  if (static_cast<const void*>(rows.data) != target.data) {
    for (int64_t t = 0; t < count; ++t) {
      convert(rows[t], target[t], shape.width);
    }
  }
}

// One (batch, head), and the [T, D] matrices that tensors have there.
struct Row {
  int64_t batch, head;
  const bool* mask;

  Row(const LocalAttention& shape, int64_t row)
      : batch(row / shape.heads),
        head(row % shape.heads),
        mask(shape.key_mask ? shape.key_mask + batch * shape.mask_stride : nullptr) {
  }

  template <typename T>
  Rows<T> of(const Strided<T>& tensor) const {
    return {tensor.data + batch * tensor.stride[0] + head * tensor.stride[1], tensor.stride[2]};
  }
};

// Which of `count` keys from `first` on exist and count.
inline void find_valid(const LocalAttention& shape, const bool* mask, int64_t first, int64_t count, bool* valid) {
  for (int64_t t = 0; t < count; ++t) {
    const int64_t j = first + t;
    valid[t] = j >= 0 && j < shape.length && (mask == nullptr || mask[j]);
  }
}

// Sets the scores of keys that don't count to -inf. `valid` starts at the first key of the tile's first query.
template <typename A>
void leave_out(const Sizes<A>& sizes, const bool* valid, A* scores) {
  std::fill(scores + sizes.window * kTile, scores + sizes.band, -kInfinity<A>);
  if (!std::all_of(valid, valid + sizes.window + kTile - 1, [](bool x) { return x; })) {
    for (int64_t o = 0; o < sizes.window; ++o) {
      for (int i = 0; i < kTile; ++i) {
        scores[o * kTile + i] = valid[o + i] ? scores[o * kTile + i] : -kInfinity<A>;
      }
    }
  }
}

template <typename A>
void clear_column(const Sizes<A>& sizes, int i, A* scores) {
  for (int64_t o = 0; o < sizes.window; ++o) {
    scores[o * kTile + i] = 0;
  }
}

// Scores to weights, in place; `lse` gets the logarithms of the sums of the exponentials.
template <typename A>
void softmax(const Sizes<A>& sizes, const bool* valid, A* scores, A* lse) {
  const auto larger = [](Vector<A> x, Vector<A> y) { return x > y ? x : y; };
  const auto plus = [](Vector<A> x, Vector<A> y) { return x + y; };
  Vector<A> highest = broadcast(-kInfinity<A>), total{};
  for (int64_t x = 0; x < sizes.band; x += kLanes<A>) {
    highest = larger(load(scores + x), highest);
  }
  highest = over_offsets<A>(highest, larger);
  for (int64_t x = 0; x < sizes.band; x += kLanes<A>) {
    const Vector<A> weight = exponential<A>(load(scores + x) - highest);
    store(scores + x, weight);
    total += weight;
  }
  total = over_offsets<A>(total, plus);
  const Vector<A> inverse = A(1) / total;
  for (int64_t x = 0; x < sizes.band; x += kLanes<A>) {
    store(scores + x, load(scores + x) * inverse);
  }
  for (int i = 0; i < kTile; ++i) {
    lse[i] = highest[i] + std::log(total[i]);
    if (std::none_of(valid + i, valid + i + sizes.window, [](bool x) { return x; })) {
      clear_column(sizes, i, scores);
      lse[i] = -kInfinity<A>;
    }
  }
}

}  // namespace

template <typename T, typename A>
void local_attention_forward(
    const LocalAttention& shape, const Strided<const T>& q, const Strided<const T>& k, const Strided<const T>& v,
    const Strided<T>& out, A* lse, int64_t begin, int64_t end) {
  const Sizes<A> sizes(shape);
  const int64_t width = sizes.width, blocks = (shape.length + shape.block - 1) / shape.block;
  const int64_t most_queries = round_up(shape.block, kTile), most_keys = sizes.keys(shape.block);
  const auto q_buffer = allocate<A>(most_queries * width), k_buffer = allocate<A>(most_keys * width),
             v_buffer = allocate<A>(most_keys * width), scores = allocate<A>(sizes.band),
             out_buffer = allocate<A>(kTile * width);
  const auto exists = allocate<bool>(most_queries), valid = allocate<bool>(most_keys);
  for (int64_t task = begin; task < end; ++task) {
    const Row row(shape, task / blocks);
    const int64_t first = task % blocks * shape.block, count = std::min(shape.block, shape.length - first);
    const int64_t keys_first = first - shape.radius, key_count = sizes.keys(count);
    find_valid(shape, nullptr, first, round_up(count, kTile), exists.get());
    find_valid(shape, row.mask, keys_first, key_count, valid.get());
    const Rows<const A> queries =
        read_rows(shape, row.of(q), first, round_up(count, kTile), exists.get(), width, q_buffer.get());
    const Rows<const A> keys = read_rows(shape, row.of(k), keys_first, key_count, valid.get(), width, k_buffer.get());
    const Rows<const A> values = read_rows(shape, row.of(v), keys_first, key_count, valid.get(), width, v_buffer.get());
    const Rows<T> own = row.of(out).from(first);
    A* const own_lse = lse + task / blocks * shape.length + first;
    for (int64_t i = 0; i < count; i += kTile) {
      prefetch_tile<T>(queries, width, i + 2 * kTile);
      prefetch_tile<T>(keys, width, i + 2 * kTile + sizes.window - 1);
      prefetch_tile<T>(values, width, i + 2 * kTile + sizes.window - 1);
      banded_dots<A>(queries.from(i), keys.from(i), width, sizes.offsets, static_cast<A>(shape.scale), scores.get());
      leave_out(sizes, valid.get() + i, scores.get());
      A log_sums[kTile];
      softmax(sizes, valid.get() + i, scores.get(), log_sums);
      const int64_t rows = std::min<int64_t>(kTile, count - i);
      const Rows<A> sums = place_rows(shape, own.from(i), width, out_buffer.get());
      const auto weights = [&](int64_t s) { return scores.get() + s * kTile; };
      banded_sums<1 - kTile, A>(
          values.from(i), width, sizes.window - 1, 0, sizes.window + kTile - 1, weights, sums, rows, false);
      finish_rows(shape, sums, rows, own.from(i));
      std::copy_n(log_sums, rows, own_lse + i);
    }
  }
}

template <typename T, typename A>
void local_attention_backward(
    const LocalAttention& shape, const Strided<const T>& grad_out, const Strided<const T>& q, const Strided<const T>& k,
    const Strided<const T>& v, const A* lse, const Strided<T>& grad_q, const Strided<T>& grad_k,
    const Strided<T>& grad_v, int64_t begin, int64_t end) {
  const Sizes<A> sizes(shape);
  const int64_t width = sizes.width, radius = shape.radius, span = 2 * radius;
  const int64_t blocks = (shape.length + shape.block - 1) / shape.block;
  const int64_t most_keys = sizes.keys(kChunk);
  const auto q_buffer = allocate<A>(kChunk * width), g_buffer = allocate<A>(kChunk * width),
             k_buffer = allocate<A>(most_keys * width), v_buffer = allocate<A>(most_keys * width),
             weights = allocate<A>(kChunk / kTile * sizes.band), slopes = allocate<A>(kChunk / kTile * sizes.band),
             dq_buffer = allocate<A>(kTile * width), dk_buffer = allocate<A>(shape.block * width),
             dv_buffer = allocate<A>(shape.block * width);
  const auto exists = allocate<bool>(kChunk), valid = allocate<bool>(most_keys);
  const auto plus = [](Vector<A> x, Vector<A> y) { return x + y; };
  const A scale = static_cast<A>(shape.scale);
  for (int64_t task = begin; task < end; ++task) {
    const Row row(shape, task / blocks);
    const int64_t first = task % blocks * shape.block, last = std::min(first + shape.block, shape.length);
    // Whole tiles before the block, so that no tile has queries on both sides of its start.
    const int64_t halo_first = std::max<int64_t>(first - round_up(radius, kTile), 0);
    const int64_t halo_last = std::min(last + radius, shape.length);
    const A* const row_lse = lse + task / blocks * shape.length;
    const Rows<T> own_dk = row.of(grad_k).from(first), own_dv = row.of(grad_v).from(first);
    const Rows<A> dk = place_rows(shape, own_dk, width, dk_buffer.get());
    const Rows<A> dv = place_rows(shape, own_dv, width, dv_buffer.get());
    for (int64_t chunk = halo_first; chunk < halo_last; chunk += kChunk) {
      const int64_t count = std::min(kChunk, halo_last - chunk), padded = round_up(count, kTile);
      const int64_t keys_first = chunk - radius, key_count = sizes.keys(count);
      find_valid(shape, nullptr, chunk, padded, exists.get());
      find_valid(shape, row.mask, keys_first, key_count, valid.get());
      const Rows<const A> queries = read_rows(shape, row.of(q), chunk, padded, exists.get(), width, q_buffer.get());
      const Rows<const A> grads =
          read_rows(shape, row.of(grad_out), chunk, padded, exists.get(), width, g_buffer.get());
      const Rows<const A> keys = read_rows(shape, row.of(k), keys_first, key_count, valid.get(), width, k_buffer.get());
      const Rows<const A> values =
          read_rows(shape, row.of(v), keys_first, key_count, valid.get(), width, v_buffer.get());

      // Each pass asks for the rows that a later one reads: this one for the next pass, the one for dq for the next
      // chunk.
      for (int64_t i = 0; i < count; i += kTile) {
        prefetch_tile<T>(grads, width, i);
        prefetch_tile<T>(values, width, i + span);
        banded_dots<A>(
            queries.from(i), keys.from(i), width, sizes.offsets, scale, weights.get() + i / kTile * sizes.band);
      }
      for (int64_t i = 0; i < count; i += kTile) {
        banded_dots<A>(
            grads.from(i), values.from(i), width, sizes.offsets, A(1), slopes.get() + i / kTile * sizes.band);
      }
      for (int64_t i = 0; i < count; i += kTile) {
        A* const weight = weights.get() + i / kTile * sizes.band;
        A* const slope = slopes.get() + i / kTile * sizes.band;
        leave_out(sizes, valid.get() + i, weight);
        std::fill(slope + sizes.window * kTile, slope + sizes.band, A(0));
        A log_sums[kLanes<A>];
        for (int l = 0; l < kLanes<A>; ++l) {
          log_sums[l] = i + l % kTile < count ? row_lse[chunk + i + l % kTile] : A(0);
        }
        const Vector<A> log_sum = load(log_sums);
        // The sum over the band is dot(grad_out, out), but free of the rounding of a half-precision output.
        Vector<A> delta{};
        for (int64_t x = 0; x < sizes.band; x += kLanes<A>) {
          const Vector<A> w = exponential<A>(load(weight + x) - log_sum);
          store(weight + x, w);
          delta += w * load(slope + x);
        }
        delta = over_offsets<A>(delta, plus);
        for (int64_t x = 0; x < sizes.band; x += kLanes<A>) {
          store(slope + x, scale * load(weight + x) * (load(slope + x) - delta));
        }
        // A row without a valid key has the constant output zero: no gradient passes through it.
        for (int r = 0; r < kTile; ++r) {
          if (log_sums[r] == -kInfinity<A>) {
            clear_column(sizes, r, weight);
            clear_column(sizes, r, slope);
          }
        }
      }

      // dq of the block's own queries.
      for (int64_t t = std::max(chunk, first); t < std::min(chunk + count, last); t += kTile) {
        const int64_t i = t - chunk, rows = std::min<int64_t>(kTile, last - t);
        const Rows<T> target = row.of(grad_q).from(t);
        const Rows<A> dq = place_rows(shape, target, width, dq_buffer.get());
        const A* const slope = slopes.get() + i / kTile * sizes.band;
        banded_sums<1 - kTile, A>(
            keys.from(i), width, span, 0, span + kTile, [&](int64_t s) { return slope + s * kTile; }, dq, rows, false);
        finish_rows(shape, dq, rows, target);
        prefetch_tile<T>(queries, width, i + kChunk);
        prefetch_tile<T>(keys, width, i + kChunk + span);
      }
      // What the chunk's queries add to dk and dv of the block's own keys.
      const auto add_chunk = [&](const A* bands, Rows<const A> source, Rows<A> target) {
        const int64_t keys_begin = first + std::max<int64_t>(chunk - radius - first, 0) / kTile * kTile;
        for (int64_t j = keys_begin; j < std::min(chunk + count + radius, last); j += kTile) {
          // Row s of the source is query j - radius + s.
          const int64_t offset = j - radius - chunk;
          const auto weights_of = [&](int64_t s) {
            const int64_t i = s + offset;
            return bands + i / kTile * sizes.band + i % kTile + (span - s) * kTile;
          };
          banded_sums<kTile, A>(
              source.from(offset), width, span, std::max<int64_t>(-offset, 0), std::min(count - offset, span + kTile),
              weights_of, target.from(j - first), std::min<int64_t>(kTile, last - j),
              chunk > std::max(halo_first, j - radius));
        }
      };
      add_chunk(slopes.get(), queries, dk);
      add_chunk(weights.get(), grads, dv);
    }
    finish_rows(shape, dk, last - first, own_dk);
    finish_rows(shape, dv, last - first, own_dv);
    for (int64_t j = first; row.mask != nullptr && j < last; ++j) {
      if (!row.mask[j]) {
        std::fill_n(own_dk[j - first], shape.width, T(0));
        std::fill_n(own_dv[j - first], shape.width, T(0));
      }
    }
  }
}

#define POTLOC_INSTANTIATE(T, A)                                                                        \
  template void local_attention_forward<T, A>(                                                          \
      const LocalAttention&, const Strided<const T>&, const Strided<const T>&, const Strided<const T>&, \
      const Strided<T>&, A*, int64_t, int64_t);                                                         \
  template void local_attention_backward<T, A>(                                                         \
      const LocalAttention&, const Strided<const T>&, const Strided<const T>&, const Strided<const T>&, \
      const Strided<const T>&, const A*, const Strided<T>&, const Strided<T>&, const Strided<T>&, int64_t, int64_t);
POTLOC_INSTANTIATE(float, float)
POTLOC_INSTANTIATE(double, double)
POTLOC_INSTANTIATE(BFloat16, float)
POTLOC_INSTANTIATE(Half, float)

}  // namespace potloc::cpu::POTLOC_CAPABILITY
