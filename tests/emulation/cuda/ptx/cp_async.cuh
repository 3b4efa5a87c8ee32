#pragma once
#include "emulator.h"

namespace prefiqs::cuda {

inline uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(static_cast<const unsigned char*>(shared) - emulation::shared_memory());
}

inline void cp_async_16(uint32_t dst, const void* src, bool valid) { emulation::copy_async(dst, src, 16, valid); }
inline void cp_async_16_cached(uint32_t dst, const void* src, bool valid) { cp_async_16(dst, src, valid); }
inline void cp_async_4(uint32_t dst, const void* src, bool valid) { emulation::copy_async(dst, src, 4, valid); }
inline void cp_async_commit() { emulation::commit_copies(); }

template <int pending>
void cp_async_wait() {
  emulation::wait_copies(pending);
}

}  // namespace prefiqs::cuda
