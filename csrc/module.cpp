// The Python module: the operators, and the facts of this build.

#include <pybind11/pybind11.h>
#include <torch/csrc/stable/library.h>

#include "common/schemas.h"
#include "cpu/capability.h"

STABLE_TORCH_LIBRARY(potloc_fast, m) {
  potloc::define_operators(m);
}

PYBIND11_MODULE(_C, m) {
  m.doc() = "Operators of potloc_fast; importing it registers them under torch.ops.potloc_fast.";
  m.attr("compiler") = __VERSION__;
#ifdef POTLOC_CUDA
  m.attr("cuda_architectures") = POTLOC_CUDA;
#else
  m.attr("cuda_architectures") = "";
#endif
#ifdef POTLOC_WITHOUT_CUDA
  m.attr("without_cuda") = POTLOC_WITHOUT_CUDA;
#else
  m.attr("without_cuda") = "";
#endif
  m.def("cpu_capability", &potloc::cpu::capability_name, "The instruction set that the CPU kernels use.");
}
