#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace prefiqs::cuda {

struct Float16 {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

inline float float_of(uint32_t bits) {
  float result;
  std::memcpy(&result, &bits, 4);
  return result;
}

inline uint32_t bits_of(float x) {
  uint32_t result;
  std::memcpy(&result, &x, 4);
  return result;
}

inline float to_float(float x) { return x; }

inline float decoded(Float16 x) {
  const uint32_t sign = (x.bits & 0x8000u) << 16, exponent = x.bits >> 10 & 0x1f, fraction = x.bits & 0x3ff;
  if (exponent == 31) return float_of(sign | 0x7f800000u | fraction << 13);
  if (exponent == 0) return (sign != 0 ? -1.f : 1.f) * static_cast<float>(fraction) * 0x1p-24f;
  return float_of(sign | (exponent + 112) << 23 | fraction << 13);
}

// A table, because the emulator spends much of its time here.
inline float to_float(Float16 x) {
  static const auto table = [] {
    std::vector<float> values;
    for (uint32_t bits = 0; bits < 0x10000; ++bits) values.push_back(decoded({static_cast<uint16_t>(bits)}));
    return values;
  }();
  return table[x.bits];
}

inline float to_float(BFloat16 x) { return float_of(static_cast<uint32_t>(x.bits) << 16); }

inline Float16 float16_of(float x) {
  const auto sign = static_cast<uint16_t>(bits_of(x) >> 16 & 0x8000);
  const float size = std::fabs(x);
  if (std::isnan(x)) return {0x7fff};
  if (size >= 65520.f) return {static_cast<uint16_t>(sign | 0x7c00)};  // half way to 2^16
  if (size < 0x1p-14f) return {static_cast<uint16_t>(sign | static_cast<int>(std::nearbyint(size * 0x1p24f)))};
  // Rounding may carry into the exponent, and that is right.
  const uint32_t bits = bits_of(size), odd = bits >> 13 & 1;
  return {static_cast<uint16_t>(sign | ((bits - (112u << 23) + 0xfff + odd) >> 13))};
}

inline BFloat16 bfloat16_of(float x) {
  if (std::isnan(x)) return {0x7fff};
  const uint32_t bits = bits_of(x);
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

template <class T>
uint32_t pack(float first, float second);

template <>
inline uint32_t pack<Float16>(float first, float second) {
  return float16_of(first).bits | static_cast<uint32_t>(float16_of(second).bits) << 16;
}

template <>
inline uint32_t pack<BFloat16>(float first, float second) {
  return bfloat16_of(first).bits | static_cast<uint32_t>(bfloat16_of(second).bits) << 16;
}

}  // namespace prefiqs::cuda
