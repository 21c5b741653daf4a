// The exponential function for vectors: x = n ln 2 + r with |r| <= ln(2) / 2, and e^x = 2^n e^r.
#pragma once

#include "cpu/simd.h"

namespace potloc::cpu::POTLOC_CAPABILITY {
namespace {

constexpr double factorial(int k) {
  return k == 0 ? 1 : k * factorial(k - 1);
}

// e^x within 2 ulp; NaN stays NaN, and what lies outside the range of A becomes 0 or infinity.
template <typename A>
[[gnu::always_inline]] inline Vector<A> exponential(Vector<A> x) {
  constexpr bool kSingle = sizeof(A) == sizeof(float);
  constexpr A kLowest = kSingle ? -104 : -746, kHighest = kSingle ? 89 : 710;
  constexpr A kHighLn2 = kSingle ? A(0.693359375) : A(0.693145751953125);
  constexpr A kLowLn2 = kSingle ? A(-2.12194440054690583e-4) : A(1.42860682030941723212e-6);
  constexpr int kDegree = kSingle ? 7 : 13;
  // Added, it rounds to an integer, which then stands in the lowest bits.
  constexpr A kRound = kSingle ? A(0x1.8p23) : A(0x1.8p52);
  constexpr int kMantissa = kSingle ? 23 : 52, kBias = kSingle ? 127 : 1023;

  x = x < kLowest ? broadcast(kLowest) : x;
  x = x > kHighest ? broadcast(kHighest) : x;
  const Vector<A> shifted = x * A(1.44269504088896340736) + kRound;
  const Vector<A> n = shifted - kRound;
  const Vector<A> r = x - n * kHighLn2 - n * kLowLn2;
  // Taylor's polynomial in Horner's form: its remainder is below the rounding.
  Vector<A> power = broadcast(A(1 / factorial(kDegree)));
#pragma GCC unroll 16
  for (int k = kDegree - 1; k >= 0; --k) {
    power = power * r + A(1 / factorial(k));
  }
  // 2^n in two factors: alone, it would leave the range of A before the product does.
  const Bits<A> exponent = (Bits<A>)shifted - (Bits<A>)broadcast(kRound), half = exponent >> 1;
  const auto power_of_two = [](Bits<A> e) { return (Vector<A>)((e + kBias) << kMantissa); };
  return power * power_of_two(half) * power_of_two(exponent - half);
}

}  // namespace
}  // namespace potloc::cpu::POTLOC_CAPABILITY
