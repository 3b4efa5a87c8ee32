// How a kernel is started, and its shared memory. This file and ptx/ hold all that plain C++ cannot say:
// tests/emulation replaces them with files of the same names.
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
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  // More than 48 KiB has to be asked for on each device; asking again costs nothing beside a launch.
  if (shared_bytes > 48 * 1024) {
    const auto status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
    if (status != cudaSuccess) return cudaGetLastError();  // and so takes it: the next launch would report it
  }
  kernel<<<static_cast<unsigned>(blocks), threads, shared_bytes, stream>>>(params...);
  return cudaGetLastError();
}

}  // namespace prefiqs::cuda
