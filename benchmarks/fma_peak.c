// The most multiply-adds that one core can do: chains of them on registers, as many as hide their latency.
#include <immintrin.h>
#include <time.h>

#if defined(__AVX512F__)
typedef __m512 Vec;
#define SET _mm512_set1_ps
#define FMA _mm512_fmadd_ps
#else
typedef __m256 Vec;
#define SET _mm256_set1_ps
#define FMA _mm256_fmadd_ps
#endif

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

// Operations a second (a multiply-add is two) over about `seconds`.
double fma_peak(double seconds) {
  enum { chains = 12, steps = 100000 };
  Vec sum[chains];  // in registers, as every loop over it is unrolled
#pragma GCC unroll 12
  for (int i = 0; i < chains; ++i) sum[i] = SET((float)i);
  const Vec factor = SET(0.999f), term = SET(1e-3f);
  double operations = 0;
  const double start = now();
  do {
    for (int step = 0; step < steps; ++step) {
#pragma GCC unroll 12
      for (int i = 0; i < chains; ++i) sum[i] = FMA(sum[i], factor, term);
    }
    operations += 2.0 * steps * chains * (double)(sizeof(Vec) / sizeof(float));
  } while (now() - start < seconds);
  const double rate = operations / (now() - start);
#pragma GCC unroll 12
  for (int i = 0; i < chains; ++i) __asm__ volatile("" : : "v"(sum[i]));  // they are used: the loop stays
  return rate;
}
