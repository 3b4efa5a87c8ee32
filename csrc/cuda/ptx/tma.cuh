// cp.async.bulk.tensor: the tensor copy engine fills a box of shared memory and reports its bytes to an mbarrier; what
// lies outside the tensor is zero, and counts. Maps are made by the driver, found at run time: nothing links to it.
#pragma once
#include <cuda.h>

#include "cuda/im2col.h"

namespace prefiqs::cuda {

using TensorMap = CUtensorMap;

template <class T>
constexpr CUtensorMapDataType tensor_type();
template <>
constexpr CUtensorMapDataType tensor_type<Float16>() {
  return CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
}
template <>
constexpr CUtensorMapDataType tensor_type<BFloat16>() {
  return CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
}

template <class Function>
Function* driver_function(const char* name) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result{};
  const auto status = cudaGetDriverEntryPointByVersion(name, &found, 12000, cudaEnableDefault, &result);
  if (status != cudaSuccess) cudaGetLastError();  // takes it: the next launch would report it
  return status == cudaSuccess && result == cudaDriverEntryPointSuccess ? reinterpret_cast<Function*>(found) : nullptr;
}

// The runtime gives its errors the driver's numbers.
inline cudaError_t runtime_error(CUresult result) { return static_cast<cudaError_t>(result); }

template <class T>
cudaError_t encode(TensorMap& out, const Im2colMap& map) {
  static auto* const function = driver_function<decltype(cuTensorMapEncodeIm2col)>("cuTensorMapEncodeIm2col");
  if (function == nullptr) return cudaErrorNotSupported;
  const CUresult result =
      function(&out, tensor_type<T>(), 4, const_cast<void*>(map.data), map.dims, map.strides, map.lower, map.upper,
               map.channels, map.pixels, map.traversal, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
               CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return runtime_error(result);
}

template <class T>
cudaError_t encode(TensorMap& out, const TiledMap& map) {
  static auto* const function = driver_function<decltype(cuTensorMapEncodeTiled)>("cuTensorMapEncodeTiled");
  if (function == nullptr) return cudaErrorNotSupported;
  constexpr uint32_t every[3] = {1, 1, 1};
  const CUresult result = function(&out, tensor_type<T>(), 3, const_cast<void*>(map.data), map.dims, map.strides,
                                   map.box, every, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                   CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return runtime_error(result);
}

// `place` of the box's first pixel; (r, s): the tap's offset in pixels.
__device__ inline void copy_im2col(
    uint32_t dst, const TensorMap& map, uint32_t barrier, int channel, PixelPlace place, int s, int r) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, "
      "%6}], [%2], {%7, %8};" ::"r"(dst),
      "l"(&map), "r"(barrier), "r"(channel), "r"(place.w), "r"(place.h), "r"(place.image),
      "h"(static_cast<uint16_t>(s)), "h"(static_cast<uint16_t>(r))
      : "memory");
}

__device__ inline void copy_tile(uint32_t dst, const TensorMap& map, uint32_t barrier, int channel, int tap, int row) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], "
      "[%2];" ::"r"(dst),
      "l"(&map), "r"(barrier), "r"(channel), "r"(tap), "r"(row)
      : "memory");
}

}  // namespace prefiqs::cuda
