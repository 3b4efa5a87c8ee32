// One float vector type for each instruction set, picked by the flags of the file that includes this header. Everything
// is in an unnamed namespace: a shared inline symbol could be merged across files and run AVX-512 code on a CPU without
// it.
#pragma once
#include <cstdint>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace prefiqs {
namespace {

inline int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

#if defined(__AVX512F__)

struct Vec {
  static constexpr int width = 16;
  static constexpr int tile_pixels = 14;  // 14 x 2 accumulators + 2 weights + 1 pixel of 32 registers
  __m512 v;
  static __mmask16 first(int64_t n) { return static_cast<__mmask16>((1u << n) - 1); }
  static Vec zero() { return {_mm512_setzero_ps()}; }
  static Vec broadcast(float x) { return {_mm512_set1_ps(x)}; }
  static Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static Vec load(const float* p, int64_t n) { return {_mm512_maskz_loadu_ps(first(n), p)}; }
  void store(float* p) const { _mm512_storeu_ps(p, v); }
  void store(float* p, int64_t n) const { _mm512_mask_storeu_ps(p, first(n), v); }
  static Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
  friend Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
  // x where x >= 0, else slope * x; a NaN stays a NaN.
  static Vec prelu(Vec x, Vec slope) {
    const __mmask16 negative = _mm512_cmp_ps_mask(x.v, _mm512_setzero_ps(), _CMP_NGE_UQ);
    return {_mm512_mask_mul_ps(x.v, negative, x.v, slope.v)};
  }
};

#elif defined(__AVX2__)

struct Vec {
  static constexpr int width = 8;
  static constexpr int tile_pixels = 6;  // 6 x 2 accumulators + 2 weights + 1 pixel of 16 registers
  __m256 v;
  static __m256i first(int64_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static Vec zero() { return {_mm256_setzero_ps()}; }
  static Vec broadcast(float x) { return {_mm256_set1_ps(x)}; }
  static Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static Vec load(const float* p, int64_t n) { return {_mm256_maskload_ps(p, first(n))}; }
  void store(float* p) const { _mm256_storeu_ps(p, v); }
  void store(float* p, int64_t n) const { _mm256_maskstore_ps(p, first(n), v); }
  static Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
  friend Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
  static Vec prelu(Vec x, Vec slope) {
    const __m256 keep = _mm256_cmp_ps(x.v, _mm256_setzero_ps(), _CMP_GE_OQ);
    return {_mm256_blendv_ps(_mm256_mul_ps(x.v, slope.v), x.v, keep)};
  }
};

#else

// Four plain floats: the compiler uses whatever the baseline of the machine has (SSE2, NEON, nothing).
struct Vec {
  static constexpr int width = 4;
  static constexpr int tile_pixels = 4;
  float v[4];
  static Vec zero() { return {{0, 0, 0, 0}}; }
  static Vec broadcast(float x) { return {{x, x, x, x}}; }
  static Vec load(const float* p) { return {{p[0], p[1], p[2], p[3]}}; }
  static Vec load(const float* p, int64_t n) {
    Vec r = zero();
    for (int64_t i = 0; i < n; ++i) r.v[i] = p[i];
    return r;
  }
  void store(float* p) const {
    for (int i = 0; i < 4; ++i) p[i] = v[i];
  }
  void store(float* p, int64_t n) const {
    for (int64_t i = 0; i < n; ++i) p[i] = v[i];
  }
  static Vec fma(Vec a, Vec b, Vec c) {
    for (int i = 0; i < 4; ++i) c.v[i] += a.v[i] * b.v[i];
    return c;
  }
  friend Vec operator+(Vec a, Vec b) {
    for (int i = 0; i < 4; ++i) a.v[i] += b.v[i];
    return a;
  }
  friend Vec operator-(Vec a, Vec b) {
    for (int i = 0; i < 4; ++i) a.v[i] -= b.v[i];
    return a;
  }
  friend Vec operator*(Vec a, Vec b) {
    for (int i = 0; i < 4; ++i) a.v[i] *= b.v[i];
    return a;
  }
  static Vec prelu(Vec x, Vec slope) {
    for (int i = 0; i < 4; ++i) x.v[i] = x.v[i] >= 0 ? x.v[i] : slope.v[i] * x.v[i];
    return x;
  }
};

#endif

// What a finished sum still needs: bias, residual, activation. `n` lanes are valid, from channel c on.
struct Epilogue {
  const float* slope;
  int64_t slope_stride;

  Vec operator()(Vec sum, const float* bias, const float* residual, int64_t c, int64_t n) const {
    if (n == Vec::width) {
      sum = sum + Vec::load(bias + c);
      if (residual != nullptr) sum = sum + Vec::load(residual + c);
      if (slope != nullptr) sum = Vec::prelu(sum, slope_stride == 0 ? Vec::broadcast(*slope) : Vec::load(slope + c));
      return sum;
    }
    sum = sum + Vec::load(bias + c, n);
    if (residual != nullptr) sum = sum + Vec::load(residual + c, n);
    if (slope != nullptr) sum = Vec::prelu(sum, slope_stride == 0 ? Vec::broadcast(*slope) : Vec::load(slope + c, n));
    return sum;
  }
};

}  // namespace
}  // namespace prefiqs
