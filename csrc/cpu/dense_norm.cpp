// Sums of squares, in blocks of fixed length.
//
// Layout: src [rows][features], rows `step` numbers apart. Nothing is kept in fast memory, because every number is read
// once. Loop: for each run of 1024 numbers: number i goes to lane i % lanes, in float, so that any compiler makes
// vectors of it; then the lanes are added to sums in double, so that few roundings meet in a sum. The lanes are joined
// at the end.
#include "cpu/dense_norm.h"

#include <algorithm>

namespace prefiqs {
namespace {

constexpr int64_t lanes = 32;  // eight of the shortest vectors: enough to hide the time that an addition takes
constexpr int64_t run_length = 1024;

template <class Number>
void add_squares(const Number* numbers, int64_t count, float* sums) {
  for (int64_t lane = 0; lane < count; ++lane) sums[lane] += to_float(numbers[lane]) * to_float(numbers[lane]);
}

template <class Number>
double sum_of_squares(const Number* numbers, int64_t count) {
  double sums[lanes] = {};
  for (int64_t begin = 0; begin < count; begin += run_length) {
    const int64_t end = std::min(begin + run_length, count);
    float run_sums[lanes] = {};
    int64_t i = begin;
    for (; i + lanes <= end; i += lanes) add_squares(numbers + i, lanes, run_sums);
    add_squares(numbers + i, end - i, run_sums);
    for (int64_t lane = 0; lane < lanes; ++lane) sums[lane] += run_sums[lane];
  }
  double sum = 0;
  for (const double each : sums) sum += each;
  return sum;
}

}  // namespace

template <class Number>
void square_blocks(const Number* src, int64_t step, int64_t features, double* sums, int64_t begin, int64_t end) {
  const int64_t blocks = (features + norm_block - 1) / norm_block;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t first = i % blocks * norm_block;
    sums[i] = sum_of_squares(src + i / blocks * step + first, std::min(norm_block, features - first));
  }
}

template void square_blocks(const float*, int64_t, int64_t, double*, int64_t, int64_t);
template void square_blocks(const BFloat16*, int64_t, int64_t, double*, int64_t, int64_t);

}  // namespace prefiqs
