// CPU kernels are compiled once for each instruction set, each time into a namespace of its own.
#pragma once

#if defined(__x86_64__)
#define POTLOC_FOR_EACH_CAPABILITY(...) \
  namespace baseline {                  \
  __VA_ARGS__                           \
  }                                     \
  namespace avx2 {                      \
  __VA_ARGS__                           \
  }                                     \
  namespace avx512 {                    \
  __VA_ARGS__                           \
  }
// Calls the build of a kernel that suits this processor.
#define POTLOC_CPU(kernel, ...)                                                                        \
  (::potloc::cpu::capability() == ::potloc::cpu::Capability::avx512 ? cpu::avx512::kernel(__VA_ARGS__) \
   : ::potloc::cpu::capability() == ::potloc::cpu::Capability::avx2 ? cpu::avx2::kernel(__VA_ARGS__)   \
                                                                    : cpu::baseline::kernel(__VA_ARGS__))
#else
#define POTLOC_FOR_EACH_CAPABILITY(...) \
  namespace baseline {                  \
  __VA_ARGS__                           \
  }
#define POTLOC_CPU(kernel, ...) cpu::baseline::kernel(__VA_ARGS__)
#endif

namespace potloc::cpu {

enum class Capability { baseline, avx2, avx512 };

// The instruction set in use: the best that this processor has, or the one that the environment variable
// POTLOC_FAST_CPU_CAPABILITY (baseline, avx2, avx512) asks for.
Capability capability();
const char* capability_name();

}  // namespace potloc::cpu
