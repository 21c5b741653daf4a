// What the host side of a CUDA operator needs, without CUDA's headers: the current device and stream, and
// memory. The tests compile it for their harness (POTLOC_CUDA_HOST), where tensors lie in guarded host memory.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/shim_utils.h>

#include <initializer_list>

#include "cuda/stream.h"

#ifdef POTLOC_CUDA_HOST
#include "cuda_host.h"
#else
#include <dlfcn.h>
#endif

namespace potloc::cuda {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Makes a tensor's device the current one for as long as it lives.
class Device {
 public:
#ifdef POTLOC_CUDA_HOST
  explicit Device(const Tensor&) {
  }

  Stream stream() const {
    return nullptr;
  }
#else
  explicit Device(const Tensor& tensor) : guard_(tensor.get_device_index()), index_(tensor.get_device_index()) {
  }

  Stream stream() const {
    // Looked up, not linked to: the library that has it comes with a torch for CUDA, and this module also runs without.
    using Get = AOTITorchError (*)(int32_t device, void** stream);
    static const auto get = reinterpret_cast<Get>(
        dlsym(dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD), "aoti_torch_get_current_cuda_stream"));
    STD_TORCH_CHECK(get != nullptr, "torch's current CUDA stream was not found");
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(get(index_, &stream));
    return stream;
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  torch::stable::accelerator::DeviceIndex index_;
#endif
};

#ifdef POTLOC_CUDA_HOST
inline size_t bytes_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Bool:
    case ScalarType::Byte:
      return 1;
    case ScalarType::Half:
    case ScalarType::BFloat16:
      return 2;
    case ScalarType::Float:
    case ScalarType::Int:
      return 4;
    default:
      return 8;
  }
}
#endif

// A tensor without gaps that has yet to be written: the same, or in the harness one like it in guarded memory.
inline Tensor guarded(const Tensor& tensor) {
#ifdef POTLOC_CUDA_HOST
  return torch::stable::from_blob(
      cuda_host::guarded(tensor.numel() * bytes_of(tensor.scalar_type())), tensor.sizes(), tensor.strides(),
      tensor.device(), tensor.scalar_type());
#else
  return tensor;
#endif
}

// A contiguous tensor on the device of `like`, its content undefined.
inline Tensor allocate(const Tensor& like, std::initializer_list<int64_t> sizes, ScalarType dtype) {
  return guarded(torch::stable::new_empty(like, {sizes.begin(), sizes.size()}, dtype));
}

}  // namespace potloc::cuda
