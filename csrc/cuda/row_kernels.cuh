// What kernels of rows of floating numbers share: the sum over the lanes of a warp, and the choice of the type.
#pragma once
#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/ptx/convert.cuh"

namespace prefiqs::cuda {

// Gives every lane the same sum, always added in the same order.
__device__ inline double warp_sum(double x) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) x += __shfl_xor_sync(0xffffffffu, x, distance);
  return x;
}

// Calls `launch_type` with a number of this type, which must be floating.
template <class LaunchType>
cudaError_t launch_as(Type type, LaunchType launch_type) {
  switch (type) {
    case Type::float16:
      return launch_type(Float16{});
    case Type::bfloat16:
      return launch_type(BFloat16{});
    case Type::float32:
      return launch_type(float{});
    case Type::uint8:
      break;
  }
  return cudaErrorInvalidValue;
}

}  // namespace prefiqs::cuda
