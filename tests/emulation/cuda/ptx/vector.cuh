#pragma once
#include "emulator.h"

namespace prefiqs::cuda {

template <class V>
V load_16(const void* src) {
  emulation::check_access("a 16-byte load", src, sizeof(V));
  return *static_cast<const V*>(src);
}

template <class V>
void store_16(void* dst, V value) {
  emulation::check_access("a 16-byte store", dst, sizeof(V));
  *static_cast<V*>(dst) = value;
}

}  // namespace prefiqs::cuda
