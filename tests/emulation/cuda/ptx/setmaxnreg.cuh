#pragma once

namespace prefiqs::cuda {

template <int>
void decrease_registers() {}
template <int>
void increase_registers() {}

}  // namespace prefiqs::cuda
