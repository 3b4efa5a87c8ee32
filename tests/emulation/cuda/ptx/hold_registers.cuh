#pragma once

namespace prefiqs::cuda {

template <class Values>
void hold_registers(Values&) {}

}  // namespace prefiqs::cuda
