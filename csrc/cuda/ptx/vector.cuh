// Loads and stores of 16 bytes at once, in global or shared memory; the address is a multiple of 16.
#pragma once

namespace prefiqs::cuda {

// V is uint4 or float4.
template <class V>
__device__ V load_16(const void* src) {
  return *static_cast<const V*>(src);
}

template <class V>
__device__ void store_16(void* dst, V value) {
  *static_cast<V*>(dst) = value;
}

}  // namespace prefiqs::cuda
