// Exponentials and logarithms for the focal losses: for float from the chip's own approximations, each corrected or
// replaced where it would lose relative precision; for double from the library.
#pragma once

#include <cmath>
#include <initializer_list>

#include "cuda/platform.h"

namespace potloc::cuda {

// One instruction each. They promise relative errors of at most 2^-22, but log2 between 1/2 and 2 an absolute one, and
// take what is subnormal for 0. The host's twins are no better, so that tests on the host bound the error on the chip.
#ifdef POTLOC_CUDA_HOST
inline float approximate_exp2(float x) {
  return std::exp2(x) * (1 + 0x1p-22f);
}
inline float approximate_log2(float x) {
  return x > 0.5f && x < 2 ? std::log2(x) + 0x1p-22f : std::log2(x) * (1 + 0x1p-22f);
}
inline float reciprocal(float x) {
  return 1 / x * (1 + 0x1p-23f);
}
#else
__device__ inline float approximate_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ inline float approximate_log2(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ inline float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
#endif

__device__ inline double reciprocal(double x) {
  return 1 / x;
}

// e^x for x <= 0. What rounding took from the exponent of 2 is given back, to first order; it must stay finite, so what
// is far below the least number is cut first.
__device__ inline float exp_nonpositive(float x) {
  x = x < -200.0f ? -200.0f : x;  // not fmax: NaN stays NaN
  const float exponent = x * 1.44269504f;
  const float y = approximate_exp2(exponent);
  return std::fma(y, std::fma(exponent, -0.693147181f, x), y);
}
__device__ inline double exp_nonpositive(double x) {
  return std::exp(x);
}

// log x for x > 0, with an absolute error near 1.
__device__ inline float log_coarse(float x) {
  return approximate_log2(x) * 0.693147181f;
}
__device__ inline double log_coarse(double x) {
  return std::log(x);
}

// log(1 - x) for x from 0 to 1/2, exact in relative terms: x times the polynomial of degree 8 with the least relative
// error, 2.3e-8.
__device__ inline float log1m(float x) {
  float y = 1.44110799f;
  for (const float coefficient :
       {-1.69581211f, 1.25766981f, -0.203538984f, 0.269612759f, 0.242805079f, 0.333700627f, 0.499992853f, 1.0f}) {
    y = std::fma(y, x, coefficient);
  }
  return -x * y;
}
__device__ inline double log1m(double x) {
  return std::log1p(-x);
}

// p^gamma, given log p as well.
template <bool kSquare, typename A>
__device__ A power(A p, A log_p, A gamma) {
  return kSquare ? p * p : exp_nonpositive(gamma * log_p);
}

}  // namespace potloc::cuda
