#include "cpu/capability.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace potloc::cpu {
namespace {

Capability best() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    return Capability::avx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    return Capability::avx2;
  }
#endif
  return Capability::baseline;
}

Capability choose() {
  const Capability highest = best();
  const char* wish = std::getenv("POTLOC_FAST_CPU_CAPABILITY");
  if (wish == nullptr) {
    return highest;
  }
  const std::string name(wish);
  const Capability wanted = name == "avx512" ? Capability::avx512
                            : name == "avx2" ? Capability::avx2
                                             : Capability::baseline;
  if ((wanted == Capability::baseline && name != "baseline") || wanted > highest) {
    throw std::runtime_error(
        "POTLOC_FAST_CPU_CAPABILITY must be baseline, avx2 or avx512, as far as this processor has it, got " + name);
  }
  return wanted;
}

}  // namespace

Capability capability() {
  static const Capability chosen = choose();
  return chosen;
}

const char* capability_name() {
  switch (capability()) {
    case Capability::avx512:
      return "avx512";
    case Capability::avx2:
      return "avx2";
    default:
      return "baseline";
  }
}

}  // namespace potloc::cpu
