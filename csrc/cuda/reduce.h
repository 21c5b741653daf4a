#pragma once

#include "cuda/platform.h"

namespace potloc::cuda {

// Sums over a block's threads, in an order that only the block's size decides; thread 0 gets them. `scratch` holds N
// values a warp.
template <int N, typename A>
__device__ void block_sum(A (&values)[N], A* scratch) {
  const int warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  for (int i = 0; i < N; ++i) {
    for (int bits = kWarp / 2; bits > 0; bits /= 2) {
      values[i] += __shfl_xor_sync(kAllLanes, values[i], bits);
    }
    if (threadIdx.x % kWarp == 0) {
      scratch[N * warp + i] = values[i];
    }
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int other = 1; other < warps; ++other) {
      for (int i = 0; i < N; ++i) {
        values[i] += scratch[N * other + i];
      }
    }
  }
}

}  // namespace potloc::cuda
