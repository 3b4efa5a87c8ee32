// The two 16-bit floating types as bits, and their conversions. To 16 bits: nearest, ties to even; too large: infinity.
#pragma once
#include <cstdint>

namespace prefiqs::cuda {

struct Float16 {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

__device__ inline float to_float(float x) { return x; }

__device__ inline float to_float(Float16 x) {
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(x.bits));
  return result;
}

__device__ inline float to_float(BFloat16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }

// Packs two values into a word, the first in its lower half.
template <class T>
__device__ uint32_t pack(float first, float second);

template <>
__device__ inline uint32_t pack<Float16>(float first, float second) {
  uint32_t result;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(second), "f"(first));
  return result;
}

template <>
__device__ inline uint32_t pack<BFloat16>(float first, float second) {
  uint32_t result;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(second), "f"(first));
  return result;
}

}  // namespace prefiqs::cuda
