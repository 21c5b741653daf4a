// Between the dtype of a tensor and the type that is computed in, many values at a time.
#pragma once

#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <type_traits>

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace potloc::cpu::POTLOC_CAPABILITY {
namespace {

template <typename From, typename To>
inline void convert(const From* from, To* to, int64_t size) {
  int64_t i = 0;
#if defined(__F16C__)
  // The compiler has no vector form of these.
  if constexpr (std::is_same_v<From, torch::headeronly::Half>) {
    for (; i + 8 <= size; i += 8) {
      const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
      _mm256_storeu_ps(to + i, _mm256_cvtph_ps(half));
    }
  } else if constexpr (std::is_same_v<To, torch::headeronly::Half>) {
    for (; i + 8 <= size; i += 8) {
      const __m128i half = _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), half);
    }
  }
#endif
#pragma omp simd
  for (int64_t j = i; j < size; ++j) {
    to[j] = static_cast<To>(from[j]);
  }
}

}  // namespace
}  // namespace potloc::cpu::POTLOC_CAPABILITY
