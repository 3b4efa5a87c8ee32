// Starting a kernel, and its shared memory. Together with ptx/ this is all that plain C++ cannot say: tests/emulation
// puts its own files of the same names in the place of these.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

namespace prefiqs::cuda {

// The block's dynamic shared memory.
__device__ inline unsigned char* shared_memory() {
  extern __shared__ __align__(128) unsigned char bytes[];
  return bytes;
}

template <class... Params>
cudaError_t launch(void (*kernel)(Params...),
                   int64_t blocks,
                   int threads,
                   int shared_bytes,
                   cudaStream_t stream,
                   const Params&... params) {
  if (blocks > INT32_MAX) return cudaErrorInvalidValue;
  // More than this has to be asked for, per device; asking again costs nothing beside a launch.
  if (shared_bytes > 48 * 1024) {
    const auto status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
    if (status != cudaSuccess) return status;
  }
  kernel<<<static_cast<unsigned>(blocks), threads, shared_bytes, stream>>>(params...);
  return cudaGetLastError();
}

}  // namespace prefiqs::cuda
