#pragma once
#include "emulator.h"

namespace prefiqs::cuda {

inline void named_barrier(int number, int threads) { emulation::barrier(number, threads); }

}  // namespace prefiqs::cuda
