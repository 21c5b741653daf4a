// Logistic functions in log space: exact in relative terms where the plain forms round to 0, 1 or infinity.
#pragma once

#include <cmath>

namespace potloc::cpu::POTLOC_CAPABILITY {
namespace {

// log(1 + e^x)
template <typename A>
inline A softplus(A x) {
  return (x > 0 ? x : A(0)) + std::log1p(std::exp(-std::abs(x)));
}

template <typename A>
inline A sigmoid(A x) {
  const A e = std::exp(-std::abs(x));
  return (x >= 0 ? A(1) : e) / (1 + e);
}

// e^(gamma l) for l = log p <= 0, with 0^0 = 1.
template <typename A>
inline A power(A log_p, A gamma) {
  return gamma == 0 ? A(1) : std::exp(gamma * log_p);
}

}  // namespace
}  // namespace potloc::cpu::POTLOC_CAPABILITY
