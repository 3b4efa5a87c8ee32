// bfloat16, the upper half of a float32, and how the two are made from each other.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

namespace prefiqs {

struct BFloat16 {
  uint16_t bits;
};

// In an unnamed namespace for the reason that vec.h gives.
namespace {

[[maybe_unused]] inline float to_float(float number) { return number; }

[[maybe_unused]] inline float to_float(BFloat16 number) {
  const uint32_t bits = static_cast<uint32_t>(number.bits) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}

// Rounds to the nearest, ties to even. A NaN stays one: its first bit of fraction is set.
[[maybe_unused]] inline BFloat16 to_bfloat16(float number) {
  uint32_t bits;
  std::memcpy(&bits, &number, sizeof bits);
  const uint32_t any = number != number ? bits | 0x400000u : bits + 0x7fffu + ((bits >> 16) & 1u);
  return {static_cast<uint16_t>(any >> 16)};
}

// What instructions for bfloat16 numbers make of every number, going in and coming out.
[[maybe_unused]] inline float flush_denormal(float number) {
  return std::fpclassify(number) == FP_SUBNORMAL ? std::copysign(0.0f, number) : number;
}

// The bits of a pair of numbers in 32 bits that stay, where the two lowest bits of `kept` say which of the two do.
[[maybe_unused]] inline uint32_t pair_mask(uint32_t kept) {
  return ((0u - (kept & 1u)) & 0xffffu) | ((0u - ((kept >> 1) & 1u)) << 16);
}

}  // namespace
}  // namespace prefiqs
