// Sums over the lanes of a warp.
#pragma once
#include "cuda/launch.h"

namespace prefiqs::cuda {

// Gives every lane the same sum, always added in the same order.
__device__ inline double warp_sum(double x) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) x += __shfl_xor_sync(0xffffffffu, x, distance);
  return x;
}

}  // namespace prefiqs::cuda
