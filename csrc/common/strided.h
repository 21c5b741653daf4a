// Tensors as kernels see them.
#pragma once

#include <cstdint>

namespace potloc {

// A [B, H, T, D] tensor, to be read where T is const. Strides are in elements; the last dimension is contiguous.
template <typename T>
struct Strided {
  T* data;
  int64_t stride[3];  // batch, head, time
};

}  // namespace potloc
