// The clock that peaks are measured by.
#pragma once
#include <time.h>

// Seconds since some moment.
static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
