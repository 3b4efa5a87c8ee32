// In the place of csrc/cuda/launch.h: CUDA C++ as plain C++, run by the emulator.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "cuda_runtime_api.h"
#include "emulator.h"

#define __host__
#define __device__
#define __global__
#define __grid_constant__
#define __launch_bounds__(...)

namespace prefiqs::cuda {

#define threadIdx emulation::thread_index
#define blockIdx emulation::block_index
#define gridDim emulation::grid_size

inline void __syncthreads() { emulation::barrier(0, 0); }
inline void __syncwarp() {
  emulation::collective("__syncwarp", [](void* const*) {}, nullptr);
}

struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

inline double __shfl_xor_sync(unsigned mask, double value, int distance) {
  struct Operands {
    double value;
    int distance;
    double result;
  } operands{value, distance, 0};
  if (mask != 0xffffffffu) emulation::fail("shuffle: every lane of the warp takes part here");
  emulation::collective(
      "shuffle",
      [](void* const* lanes) {
        for (int lane = 0; lane < 32; ++lane) {
          auto* own = static_cast<Operands*>(lanes[lane]);
          own->result = static_cast<const Operands*>(lanes[lane ^ own->distance])->value;
        }
      },
      &operands);
  return operands.result;
}

inline unsigned char* shared_memory() { return emulation::shared_memory(); }

template <class... Params>
cudaError_t launch(
    void (*kernel)(Params...), int64_t blocks, int threads, int shared_bytes, cudaStream_t, const Params&... params) {
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  const bool fine = emulation::run_kernel(blocks, threads, shared_bytes, [&] { kernel(params...); });
  return fine ? cudaSuccess : cudaErrorLaunchFailure;
}

}  // namespace prefiqs::cuda
