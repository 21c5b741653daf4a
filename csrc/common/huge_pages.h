// Memory for large results.
#pragma once

#include <torch/csrc/stable/tensor.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdint>

namespace potloc {

// Asks for huge pages behind a tensor that is about to be written whole: fresh memory in pages of 4 KiB costs more time
// than the kernel that fills it. NumPy does so too. A refusal does no harm.
inline torch::stable::Tensor on_huge_pages(torch::stable::Tensor tensor) {
#if defined(__linux__)
  constexpr uintptr_t kHugePage = uintptr_t(1) << 21;
  const auto begin = reinterpret_cast<uintptr_t>(tensor.mutable_data_ptr());
  const uintptr_t first = (begin + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t last = (begin + tensor.numel() * tensor.element_size()) / kHugePage * kHugePage;
  if (first < last) {
    madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
  }
#endif
  return tensor;
}

}  // namespace potloc
