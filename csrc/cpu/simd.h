// Vectors as wide as the registers of the instruction set that this file is compiled for, in the compilers' own vector
// types: +, *, < and ?: work lane by lane.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

// How wide vectors are passed between functions is no matter: all of them are inlined.
#pragma GCC diagnostic ignored "-Wpsabi"

namespace potloc::cpu::POTLOC_CAPABILITY {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kVectorRegisters = 32;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32, kVectorRegisters = 16;
#elif defined(__aarch64__)
constexpr int kVectorBytes = 16, kVectorRegisters = 32;
#else
constexpr int kVectorBytes = 16, kVectorRegisters = 16;
#endif

// At least 4 lanes: where the registers have fewer, a vector takes two of them.
template <typename A>
constexpr int kLanes = kVectorBytes / sizeof(A) < 4 ? 4 : kVectorBytes / sizeof(A);

template <typename A>
struct VectorOf {
  typedef A Aligned __attribute__((vector_size(kLanes<A> * sizeof(A))));
  typedef A Unaligned __attribute__((vector_size(kLanes<A> * sizeof(A)), aligned(sizeof(A)), may_alias));
};

template <typename A>
using Vector = typename VectorOf<A>::Aligned;

// Signed integers of the width of A: what comparisons of Vector<A> give, and its bits.
template <typename A>
using Bits = Vector<std::conditional_t<sizeof(A) == 4, int32_t, int64_t>>;

template <typename A>
[[gnu::always_inline]] inline Vector<A> load(const A* from) {
  return *reinterpret_cast<const typename VectorOf<A>::Unaligned*>(from);
}

template <typename A>
[[gnu::always_inline]] inline void store(A* to, Vector<A> x) {
  *reinterpret_cast<typename VectorOf<A>::Unaligned*>(to) = x;
}

template <typename A>
[[gnu::always_inline]] inline Vector<A> broadcast(A x) {
  return x - Vector<A>{};
}

// The lanes (kStart + i * kStep) % 2n of x followed by y, for i = 0 ... n - 1, where n is the number of lanes.
template <typename A, int kStart, int kStep>
[[gnu::always_inline]] inline Vector<A> pick(Vector<A> x, Vector<A> y) {
  return [&]<int... i>(std::integer_sequence<int, i...>) {
#if defined(__clang__)
    return __builtin_shufflevector(x, y, (kStart + i * kStep) % (2 * kLanes<A>)...);
#else
    return __builtin_shuffle(x, y, Bits<A>{(kStart + i * kStep) % (2 * kLanes<A>)...});
#endif
  }(std::make_integer_sequence<int, kLanes<A>>());
}

}  // namespace
}  // namespace potloc::cpu::POTLOC_CAPABILITY
