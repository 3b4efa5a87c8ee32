// prmt: a word made of four bytes of the eight in low and high. A nibble of `selector` says, from the lowest, which
// byte (0 to 7); with its top bit set, eight copies of that byte's sign.
#pragma once
#include <cstdint>

namespace prefiqs::cuda {

__device__ inline uint32_t prmt(uint32_t low, uint32_t high, uint32_t selector) {
  uint32_t result;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(result) : "r"(low), "r"(high), "r"(selector));
  return result;
}

}  // namespace prefiqs::cuda
