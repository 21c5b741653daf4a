// The CUDA operators on the host: torch.ops.potloc_fast_cuda_host.*, and toy kernels with faults that must be found.

#include <torch/csrc/stable/library.h>

#include "common/schemas.h"
#include "cuda/host.h"
#include "cuda/platform.h"

namespace potloc {
namespace {

// Each thread reads what its neighbour has written.
__global__ void rotate(const float* in, float* out, bool with_barrier) {
  float* shared = cuda::shared_memory<float>();
  shared[threadIdx.x] = in[threadIdx.x];
  if (with_barrier) {
    __syncthreads();
  }
  out[threadIdx.x] = shared[(threadIdx.x + 1) % blockDim.x];
}

// Each thread copies one element, and the last one `extra` more, past the end; in global or in shared memory.
__global__ void copy(const float* in, float* out, int size, int extra, bool in_shared) {
  float* target = in_shared ? cuda::shared_memory<float>() : out;
  for (int i = threadIdx.x; i < size + extra; i += blockDim.x) {
    target[i] = 1;
  }
  __syncthreads();
  out[threadIdx.x] = target[threadIdx.x] * in[threadIdx.x];
}

// Half of a warp never comes to the shuffle that the other half waits in.
__global__ void half_a_warp(const float* in, float* out) {
  float value = in[threadIdx.x];
  if (threadIdx.x < 16) {
    value += __shfl_xor_sync(cuda::kAllLanes, value, 1);
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = value;
}

torch::stable::Tensor toy(const torch::stable::Tensor& in, int64_t kind) {
  const auto size = static_cast<unsigned>(in.size(0));
  torch::stable::Tensor out = cuda::allocate(in, {in.size(0)}, in.scalar_type());
  const auto* x = static_cast<const float*>(in.const_data_ptr());
  auto* y = static_cast<float*>(out.mutable_data_ptr());
  const cuda::Grid grid{1, size, size * sizeof(float), nullptr};
  switch (kind) {
    case 0:
    case 1:
      cuda::launch("toy", rotate, grid, x, y, kind == 0);
      break;
    case 2:
    case 3:
      cuda::launch("toy", copy, grid, x, y, static_cast<int>(size), 4, kind == 3);
      break;
    case 4:
      cuda::launch("toy", half_a_warp, grid, x, y);
      break;
    default:
      cuda::launch("toy", half_a_warp, cuda::Grid{0, size, 0, nullptr}, x, y);
  }
  return out;
}

// A copy in guarded memory.
torch::stable::Tensor guard(const torch::stable::Tensor& tensor) {
  // Flat, since `allocate` takes its sizes as a list; Python gives the copy its shape.
  torch::stable::Tensor out = cuda::allocate(tensor, {tensor.numel()}, tensor.scalar_type());
  std::memcpy(out.mutable_data_ptr(), tensor.const_data_ptr(), tensor.numel() * cuda::bytes_of(tensor.scalar_type()));
  return out;
}

void seed(int64_t value) {
  cuda_host::set_seed(static_cast<uint64_t>(value));
}

void release() {
  cuda_host::release();
}

void fail_call(int64_t which) {
  cuda_host::failing_call = which;
}

int64_t last_error() {
  return cudaPeekAtLastError();
}

}  // namespace

STABLE_TORCH_LIBRARY(potloc_fast_cuda_host, m) {
  define_operators(m);
  m.def("toy(Tensor x, int kind) -> Tensor");
  m.def("guard(Tensor x) -> Tensor");
  m.def("seed(int value) -> ()");
  m.def("release() -> ()");
  m.def("fail_call(int which) -> ()");
  m.def("last_error() -> int");
}

STABLE_TORCH_LIBRARY_IMPL(potloc_fast_cuda_host, CompositeExplicitAutograd, m) {
  m.impl("toy", TORCH_BOX(&toy));
  m.impl("guard", TORCH_BOX(&guard));
  m.impl("seed", TORCH_BOX(&seed));
  m.impl("release", TORCH_BOX(&release));
  m.impl("fail_call", TORCH_BOX(&fail_call));
  m.impl("last_error", TORCH_BOX(&last_error));
}

}  // namespace potloc
