// To the compiler these registers are read and written here: no access moves across, and what they hold is kept, not
// computed anew where it is needed.
#pragma once
#include <cstdint>

namespace prefiqs::cuda {

__device__ inline void hold_registers(float& value) { asm volatile("" : "+f"(value)::"memory"); }
__device__ inline void hold_registers(uint32_t& value) { asm volatile("" : "+r"(value)::"memory"); }
template <class Value, int count>
__device__ void hold_registers(Value (&values)[count]) {
#pragma unroll
  for (Value& value : values) hold_registers(value);
}

}  // namespace prefiqs::cuda
