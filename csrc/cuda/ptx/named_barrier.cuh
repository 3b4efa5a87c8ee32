// bar.sync: a barrier of `threads` threads of the block, by number (1 to 15; 0 is __syncthreads).
#pragma once

namespace prefiqs::cuda {

__device__ inline void named_barrier(int number, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

}  // namespace prefiqs::cuda
