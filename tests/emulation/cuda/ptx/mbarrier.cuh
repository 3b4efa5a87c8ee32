#pragma once
#include "cuda/ptx/cp_async.cuh"
#include "emulator.h"

namespace prefiqs::cuda {

constexpr int mbarrier_bytes = 8;

inline void mbarrier_init(uint32_t barrier, int arrivals) { emulation::mbarrier_init(barrier, arrivals); }
inline void mbarrier_init_fence() {}
inline void mbarrier_arrive(uint32_t barrier) { emulation::mbarrier_arrive(barrier, 0); }
inline void mbarrier_arrive_expect(uint32_t barrier, int bytes) { emulation::mbarrier_arrive(barrier, bytes); }
inline void mbarrier_arrive_copies(uint32_t barrier) { emulation::mbarrier_arrive_copies(barrier); }
inline void mbarrier_wait(uint32_t barrier, int parity) { emulation::mbarrier_wait(barrier, parity); }

}  // namespace prefiqs::cuda
