// Division by a number that stays the same, as one product and a shift: exact for dividends from 0 to 2^31 - 1
// (Granlund and Montgomery, "Division by invariant integers using multiplication", 1994). A plain division takes the
// device some twenty instructions.
#pragma once
#include <cstdint>

#include "cuda/launch.h"

namespace prefiqs::cuda {

class Divisor {
 public:
  explicit Divisor(int value) : value_(value > 0 ? value : 1), shift_(31) {
    while ((int64_t{1} << (shift_ - 31)) < value_) ++shift_;
    multiplier_ = static_cast<uint32_t>((uint64_t{1} << shift_) / static_cast<uint32_t>(value_) + 1);
  }

  __host__ __device__ int quotient(int dividend) const {
    return static_cast<int>(static_cast<uint64_t>(static_cast<uint32_t>(dividend)) * multiplier_ >> shift_);
  }
  __host__ __device__ int remainder(int dividend) const { return dividend - quotient(dividend) * value_; }

 private:
  int value_, shift_;
  uint32_t multiplier_;
};

}  // namespace prefiqs::cuda
