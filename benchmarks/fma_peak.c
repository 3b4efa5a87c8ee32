// The most multiply-adds that one core can do: chains of them on registers, as many as hide their latency. The
// compiler's flags choose the instruction: float32 in 256 or 512 bits, or VDPBF16PS, which adds two bfloat16 products
// to each sum.
#include <immintrin.h>

#include "clock.h"

#if defined(__AVX512BF16__)
typedef __m512 Sum;
typedef __m512bh Factor;
enum { products = 32 };
#define SET_SUM _mm512_set1_ps
#define SET_FACTOR(x) _mm512_cvtne2ps_pbh(SET_SUM(x), SET_SUM(x))
#define MULTIPLY_ADD(a, b, sum) _mm512_dpbf16_ps(sum, a, b)
#elif defined(__AVX512F__)
typedef __m512 Sum, Factor;
enum { products = 16 };
#define SET_SUM _mm512_set1_ps
#define SET_FACTOR SET_SUM
#define MULTIPLY_ADD _mm512_fmadd_ps
#else
typedef __m256 Sum, Factor;
enum { products = 8 };
#define SET_SUM _mm256_set1_ps
#define SET_FACTOR SET_SUM
#define MULTIPLY_ADD _mm256_fmadd_ps
#endif

// Operations a second (a multiply-add is two) over about `seconds`.
double measure_peak(double seconds) {
  enum { chains = 12, steps = 100000 };
  Sum sum[chains];  // in registers, as every loop over it is unrolled
#pragma GCC unroll 12
  for (int i = 0; i < chains; ++i) sum[i] = SET_SUM((float)i);
  const Factor a = SET_FACTOR(0.999f), b = SET_FACTOR(1e-3f);
  double operations = 0;
  const double start = now();
  do {
    for (int step = 0; step < steps; ++step) {
#pragma GCC unroll 12
      for (int i = 0; i < chains; ++i) sum[i] = MULTIPLY_ADD(a, b, sum[i]);
    }
    operations += 2.0 * steps * chains * products;
  } while (now() - start < seconds);
  const double rate = operations / (now() - start);
#pragma GCC unroll 12
  for (int i = 0; i < chains; ++i) __asm__ volatile("" : : "v"(sum[i]));  // they are used: the loop stays
  return rate;
}
