// Argument checks that keep a kernel from reading outside its tensors. The Python layer checks first and says more.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <initializer_list>
#include <optional>

namespace potloc {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline void check_shape(const char* op, const char* name, const Tensor& tensor, std::initializer_list<int64_t> shape) {
  bool same = tensor.dim() == static_cast<int64_t>(shape.size());
  int64_t d = 0;
  for (const int64_t size : shape) {
    same = same && tensor.size(d++) == size;
  }
  STD_TORCH_CHECK(same, op, ": ", name, " has an unexpected shape");
}

inline void check_dtype(const char* op, const char* name, const Tensor& tensor, ScalarType dtype) {
  STD_TORCH_CHECK(
      tensor.scalar_type() == dtype, op, ": ", name, " must be ", torch::headeronly::toString(dtype), ", got ",
      torch::headeronly::toString(tensor.scalar_type()));
}

template <typename T>
const T* data_or_null(const std::optional<Tensor>& tensor) {
  return tensor ? static_cast<const T*>(tensor->const_data_ptr()) : nullptr;
}

}  // namespace potloc
