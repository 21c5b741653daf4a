#pragma once

namespace potloc::cuda {

// A cudaStream_t, named without CUDA's headers.
using Stream = void*;

}  // namespace potloc::cuda
