// Where operators register their kernels. The tests compile the host side of the CUDA operators once more, for a
// harness that runs their kernels on the CPU (POTLOC_CUDA_HOST): there they belong to a library of their own, without
// CPU kernels.
#pragma once

#include <torch/csrc/stable/library.h>

#ifdef POTLOC_CUDA_HOST
#define POTLOC_CPU_IMPL(m) [[maybe_unused]] static void potloc_no_cpu_kernels(torch::stable::detail::StableLibrary& m)
#define POTLOC_CUDA_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(potloc_fast_cuda_host, CPU, m)
#else
#define POTLOC_CPU_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(potloc_fast, CPU, m)
#define POTLOC_CUDA_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(potloc_fast, CUDA, m)
#endif
