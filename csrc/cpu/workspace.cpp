// The memory that kernels pack and copy into.
#include <cstdlib>
#include <memory>
#include <new>

#include "cpu/kernels.h"

namespace prefiqs {

float* thread_workspace(size_t floats) {
  struct Free {
    void operator()(float* p) const { std::free(p); }
  };
  thread_local std::unique_ptr<float, Free> buffer;
  thread_local size_t capacity = 0;
  if (floats > capacity) {
    const size_t bytes = (floats * sizeof(float) + 63) / 64 * 64;
    buffer.reset();
    capacity = 0;
    buffer.reset(static_cast<float*>(std::aligned_alloc(64, bytes)));
    if (buffer == nullptr) throw std::bad_alloc();
    capacity = floats;
  }
  return buffer.get();
}

}  // namespace prefiqs
