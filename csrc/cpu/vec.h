// One vector type of floats for each instruction set, chosen by the compiler flags of the file that includes this
// header. Everything is in an unnamed namespace: the linker could otherwise merge an inline function across files and
// run AVX-512 code on a CPU without it.
#pragma once
#include <cstdint>
#include <cstring>
#include <utility>

#include "bfloat16.h"
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace prefiqs {
namespace {

inline int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Reads a number at any address.
inline float read_float(const float* p) {
  float number;
  std::memcpy(&number, p, sizeof number);
  return number;
}

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
  static Vec load(const BFloat16* p) { return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
  static Vec load(const BFloat16* p, int64_t n) { return widen(_mm256_maskz_loadu_epi16(first(n), p)); }
  void store(BFloat16* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow()); }
  void store(BFloat16* p, int64_t n) const { _mm256_mask_storeu_epi16(p, first(n), narrow()); }
  static Vec widen(__m256i halves) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16))};
  }
  // Rounded to the nearest, ties to even. A NaN stays one: its first bit of fraction is set.
  __m256i narrow() const {
#if defined(__AVX512BF16__)  // whose instruction makes denormal numbers zero
    return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v));
#else
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    const __m512i any = _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), quiet);
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(any, 16));
#endif
  }
  static Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }    // c + a * b
  static Vec fnma(Vec a, Vec b, Vec c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }  // c - a * b
  friend Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
  // x where x >= 0, else slope * x; a NaN stays a NaN.
  static Vec prelu(Vec x, Vec slope) {
    const __mmask16 negative = _mm512_cmp_ps_mask(x.v, _mm512_setzero_ps(), _CMP_NGE_UQ);
    return {_mm512_mask_mul_ps(x.v, negative, x.v, slope.v)};
  }
  // Keeps the lanes whose bit is set, and sets the others to 0.
  static Vec keep(Vec x, uint32_t bits) { return {_mm512_maskz_mov_ps(static_cast<__mmask16>(bits), x.v)}; }
  float sum() const { return _mm512_reduce_add_ps(v); }
#if defined(__AVX512BF16__)
  // Adds the products of pairs of bfloat16 numbers, which the lanes of x and y hold.
  static Vec add_pair_products(Vec x, Vec y, Vec sum) {
    return {_mm512_dpbf16_ps(sum.v, reinterpret_cast<__m512bh>(x.v), reinterpret_cast<__m512bh>(y.v))};
  }
#endif
  // Turns `width` rows of a square into its columns.
  static void transpose(Vec* rows) {
    __m512 t[16];
    for (int i = 0; i < 16; i += 2) {
      t[i] = _mm512_unpacklo_ps(rows[i].v, rows[i + 1].v);
      t[i + 1] = _mm512_unpackhi_ps(rows[i].v, rows[i + 1].v);
    }
    // rows[4 g + k]: column k of each 128-bit lane, of rows 4 g .. 4 g + 3.
    for (int i = 0; i < 16; i += 4) {
      for (int k = 0; k < 2; ++k) {
        rows[i + 2 * k].v = _mm512_shuffle_ps(t[i + k], t[i + 2 + k], _MM_SHUFFLE(1, 0, 1, 0));
        rows[i + 2 * k + 1].v = _mm512_shuffle_ps(t[i + k], t[i + 2 + k], _MM_SHUFFLE(3, 2, 3, 2));
      }
    }
    for (int k = 0; k < 4; ++k) {
      const __m512 low_even = _mm512_shuffle_f32x4(rows[k].v, rows[4 + k].v, _MM_SHUFFLE(2, 0, 2, 0));
      const __m512 low_odd = _mm512_shuffle_f32x4(rows[k].v, rows[4 + k].v, _MM_SHUFFLE(3, 1, 3, 1));
      const __m512 high_even = _mm512_shuffle_f32x4(rows[8 + k].v, rows[12 + k].v, _MM_SHUFFLE(2, 0, 2, 0));
      const __m512 high_odd = _mm512_shuffle_f32x4(rows[8 + k].v, rows[12 + k].v, _MM_SHUFFLE(3, 1, 3, 1));
      t[k] = _mm512_shuffle_f32x4(low_even, high_even, _MM_SHUFFLE(2, 0, 2, 0));
      t[4 + k] = _mm512_shuffle_f32x4(low_odd, high_odd, _MM_SHUFFLE(2, 0, 2, 0));
      t[8 + k] = _mm512_shuffle_f32x4(low_even, high_even, _MM_SHUFFLE(3, 1, 3, 1));
      t[12 + k] = _mm512_shuffle_f32x4(low_odd, high_odd, _MM_SHUFFLE(3, 1, 3, 1));
    }
    for (int i = 0; i < 16; ++i) rows[i].v = t[i];
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
  static Vec load(const BFloat16* p) {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16))};
  }
  static Vec load(const BFloat16* p, int64_t n) {
    BFloat16 all[width] = {};
    std::memcpy(all, p, static_cast<size_t>(n) * sizeof *all);
    return load(all);
  }
  void store(BFloat16* p) const { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow()); }
  void store(BFloat16* p, int64_t n) const {
    BFloat16 all[width];
    store(all);
    std::memcpy(p, all, static_cast<size_t>(n) * sizeof *all);
  }
  // Rounded to the nearest, ties to even. A NaN stays one: its first bit of fraction is set.
  __m128i narrow() const {
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i halves = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
  }
  static Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
  static Vec fnma(Vec a, Vec b, Vec c) { return {_mm256_fnmadd_ps(a.v, b.v, c.v)}; }
  friend Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
  static Vec prelu(Vec x, Vec slope) {
    const __m256 keep = _mm256_cmp_ps(x.v, _mm256_setzero_ps(), _CMP_GE_OQ);
    return {_mm256_blendv_ps(_mm256_mul_ps(x.v, slope.v), x.v, keep)};
  }
  static Vec keep(Vec x, uint32_t bits) {
    const __m256i lane_bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i kept = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), lane_bit);
    return {_mm256_and_ps(x.v, _mm256_castsi256_ps(_mm256_cmpeq_epi32(kept, lane_bit)))};
  }
  float sum() const {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
  static void transpose(Vec* rows) {
    __m256 t[8];
    for (int i = 0; i < 8; i += 2) {
      t[i] = _mm256_unpacklo_ps(rows[i].v, rows[i + 1].v);
      t[i + 1] = _mm256_unpackhi_ps(rows[i].v, rows[i + 1].v);
    }
    for (int i = 0; i < 8; i += 4) {
      for (int k = 0; k < 2; ++k) {
        rows[i + 2 * k].v = _mm256_shuffle_ps(t[i + k], t[i + 2 + k], _MM_SHUFFLE(1, 0, 1, 0));
        rows[i + 2 * k + 1].v = _mm256_shuffle_ps(t[i + k], t[i + 2 + k], _MM_SHUFFLE(3, 2, 3, 2));
      }
    }
    for (int k = 0; k < 4; ++k) {
      t[k] = _mm256_permute2f128_ps(rows[k].v, rows[4 + k].v, 0x20);
      t[4 + k] = _mm256_permute2f128_ps(rows[k].v, rows[4 + k].v, 0x31);
    }
    for (int i = 0; i < 8; ++i) rows[i].v = t[i];
  }
};

#else

// c + a * b, rounded once where the machine's baseline has the instruction (NEON), else twice. Code of this kind is
// compiled with -ffp-contract=off: a compiler that chooses by what stands around gives a row other bits in a tail.
inline float multiply_add(float a, float b, float c) {
#if defined(__FP_FAST_FMAF)
  return __builtin_fmaf(a, b, c);
#else
  return c + a * b;
#endif
}

// Four plain floats: the compiler uses whatever the baseline of the machine has (SSE2, NEON, nothing).
struct Vec {
  static constexpr int width = 4;
  static constexpr int tile_pixels = 4;
  float v[4];
  static Vec zero() { return {{0, 0, 0, 0}}; }
  static Vec broadcast(float x) { return {{x, x, x, x}}; }
  static Vec load(const float* p, int64_t n = width) {
    Vec r = zero();
    std::memcpy(r.v, p, static_cast<size_t>(n) * sizeof *p);  // a pair of bfloat16 numbers may lie at any even address
    return r;
  }
  void store(float* p) const {
    for (int i = 0; i < 4; ++i) p[i] = v[i];
  }
  void store(float* p, int64_t n) const {
    for (int64_t i = 0; i < n; ++i) p[i] = v[i];
  }
  static Vec load(const BFloat16* p, int64_t n = width) {
    Vec r = zero();
    for (int64_t i = 0; i < n; ++i) r.v[i] = to_float(p[i]);
    return r;
  }
  void store(BFloat16* p, int64_t n = width) const {
    for (int64_t i = 0; i < n; ++i) p[i] = to_bfloat16(v[i]);
  }
  static Vec fma(Vec a, Vec b, Vec c) {
    for (int i = 0; i < 4; ++i) c.v[i] = multiply_add(a.v[i], b.v[i], c.v[i]);
    return c;
  }
  static Vec fnma(Vec a, Vec b, Vec c) {
    for (int i = 0; i < 4; ++i) c.v[i] = multiply_add(-a.v[i], b.v[i], c.v[i]);
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
  static Vec keep(Vec x, uint32_t bits) {
    for (int i = 0; i < 4; ++i) x.v[i] = ((bits >> i) & 1u) != 0 ? x.v[i] : 0.0f;
    return x;
  }
  // Adds the products of pairs of bfloat16 numbers, which the lanes of x and y hold, as the instruction does.
  static Vec add_pair_products(Vec x, Vec y, Vec sum) {
    for (int i = 0; i < 4; ++i) {
      BFloat16 a[2], b[2];
      std::memcpy(a, x.v + i, sizeof a);
      std::memcpy(b, y.v + i, sizeof b);
      float total = flush_denormal(sum.v[i]);
      for (int k : {1, 0}) {
        const float left = flush_denormal(to_float(a[k])), right = flush_denormal(to_float(b[k]));
        total = flush_denormal(multiply_add(left, right, total));
      }
      sum.v[i] = total;
    }
    return sum;
  }
  float sum() const { return (v[0] + v[2]) + (v[1] + v[3]); }
  static void transpose(Vec* rows) {
    for (int i = 0; i < 4; ++i) {
      for (int j = 0; j < i; ++j) std::swap(rows[i].v[j], rows[j].v[i]);
    }
  }
};

#endif

}  // namespace
}  // namespace prefiqs
