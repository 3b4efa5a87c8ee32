// setmaxnreg: a warpgroup gives registers back, or takes those that others gave. All its warps call it.
#pragma once

namespace prefiqs::cuda {

template <int registers>
__device__ void decrease_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(registers));
}

template <int registers>
__device__ void increase_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(registers));
}

}  // namespace prefiqs::cuda
