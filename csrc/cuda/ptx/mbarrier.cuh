// mbarrier: a phase ends when as many threads as expected have arrived and all announced bytes have landed. Phases
// alternate between parity 0 and 1; the one before the first counts as ended, with parity 1.
#pragma once
#include <cstdint>

#include "cuda/ptx/cp_async.cuh"

namespace prefiqs::cuda {

constexpr int mbarrier_bytes = 8;

__device__ inline void mbarrier_init(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Makes initialised barriers known to the copy engine; a barrier of the block has to follow.
__device__ inline void mbarrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

__device__ inline void mbarrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

__device__ inline void mbarrier_arrive_expect(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// The thread arrives as soon as all its earlier cp.async have landed.
__device__ inline void mbarrier_arrive_copies(uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}

// Waits until the phase of this parity has ended. All lanes of a warp call it, and go on together: each leaves the loop
// by itself, but what follows is issued by one lane for all, or by all at once.
__device__ inline void mbarrier_wait(uint32_t barrier, int parity) {
  asm volatile(
      "{\n"
      ".reg .pred ended;\n"
      "again_%=:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 ended, [%0], %1;\n"
      "@!ended bra again_%=;\n"
      "}\n" ::"r"(barrier),
      "r"(parity)
      : "memory");
  __syncwarp();
}

}  // namespace prefiqs::cuda
