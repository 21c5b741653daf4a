// Exponential and logarithm in plain arithmetic without branches, which the compiler vectorises: an exact reduction of
// the range, then the series, as far as the type needs it. Both are within 2 ulp, and NaN stays NaN.
#pragma once

#include <bit>
#include <cstdint>
#include <limits>
#include <utility>

namespace potloc::cpu::POTLOC_CAPABILITY {
namespace {

template <typename A>
struct Layout;

template <>
struct Layout<float> {
  using Bits = uint32_t;
  static constexpr int kMantissa = 23, kBias = 127, kExpTerms = 7, kLogTerms = 4;
};

template <>
struct Layout<double> {
  using Bits = uint64_t;
  static constexpr int kMantissa = 52, kBias = 1023, kExpTerms = 13, kLogTerms = 9;
};

// A number added to this one is rounded to an integer, which then stands in the lowest bits of the sum.
template <typename A>
inline constexpr A kRound = static_cast<A>(typename Layout<A>::Bits(3) << (Layout<A>::kMantissa - 1));

// log 2 in two parts, the first so short that its products with exponents are exact.
template <typename A>
inline constexpr A kLog2High = A(0.693359375);
template <typename A>
inline constexpr A kLog2Low = A(-2.12194440054690583e-4);

// c[0] + c[1] x + ... + c[N] x^N
template <typename C, typename A, int... I>
inline A polynomial(C coefficient, A x, std::integer_sequence<int, I...>) {
  A sum = 0;
  ((sum = sum * x + coefficient(std::integral_constant<int, static_cast<int>(sizeof...(I)) - 1 - I>{})), ...);
  return sum;
}

constexpr double factorial(int n) {
  return n < 2 ? 1 : n * factorial(n - 1);
}

// e^x for x <= 0; what would be subnormal is 0.
template <typename A>
inline A exp(A x) {
  using L = Layout<A>;
  using Bits = typename L::Bits;
  // x = n log 2 + r with |r| <= log(2) / 2
  const A shifted = x * A(1.4426950408889634) + (kRound<A> + L::kBias);
  const A n = shifted - (kRound<A> + L::kBias);
  A r = x - n * kLog2High<A>;
  r -= n * kLog2Low<A>;
  const A series =
      polynomial([](auto k) { return A(1 / factorial(k)); }, r, std::make_integer_sequence<int, L::kExpTerms + 1>{});
  const A power_of_two = std::bit_cast<A>(std::bit_cast<Bits>(shifted) << L::kMantissa);
  return x < (1 - L::kBias) * A(0.6931471805599453) ? A(0) : series * power_of_two;
}

// log(u + c) for u positive and normal, and c what u lost in rounding.
template <typename A>
inline A log(A u, A c = 0) {
  using L = Layout<A>;
  using Bits = typename L::Bits;
  // u = 2^k m with m from sqrt(1/2) to sqrt(2)
  constexpr Bits kOne = std::bit_cast<Bits>(A(1)), kRootHalf = std::bit_cast<Bits>(A(0.7071067811865476));
  const Bits bits = std::bit_cast<Bits>(u) + (kOne - kRootHalf);
  const Bits exponent = bits >> L::kMantissa;  // k + bias
  const A k = std::bit_cast<A>(std::bit_cast<Bits>(kRound<A>) + exponent) - (kRound<A> + L::kBias);
  const A m = std::bit_cast<A>((bits & ((Bits(1) << L::kMantissa) - 1)) + kRootHalf);
  const A scale = std::bit_cast<A>((2 * L::kBias - exponent) << L::kMantissa);  // 2^-k
  // log(1 + f) = 2 artanh(s) with s = f / (2 + f), and 2 s = f - f s
  const A f = (m - 1) + c * scale;
  const A s = f / (2 + f), s2 = s * s;
  const A rest =
      s2 * polynomial([](auto i) { return A(2.0 / (2 * i + 3)); }, s2, std::make_integer_sequence<int, L::kLogTerms>{});
  return k * kLog2High<A> + (f - (s * (f - rest) - k * kLog2Low<A>));
}

// log(1 + x) for x >= -1/2
template <typename A>
inline A log1p(A x) {
  const A u = 1 + x;
  return log(u, x - (u - 1));
}

}  // namespace
}  // namespace potloc::cpu::POTLOC_CAPABILITY
