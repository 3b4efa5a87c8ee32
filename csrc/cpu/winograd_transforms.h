// The transforms of Winograd's minimal filtering for tiles of 4 x 4 outputs of a 3 x 3 kernel (Lavin & Gray, arXiv
// 1509.09308), each as one dimension of it: pixels (Bt d), filter (G g) and sums (At m).
#pragma once
#include "cpu/vec.h"

namespace prefiqs {
namespace {

constexpr int out_tile = 4;

// F(4, 3), at the points 0, 1, -1, 2, -2 and infinity.
struct WinogradStride1 {
  static constexpr int stride = 1, in_tile = 6;

  static void pixels(const Vec* d, int step, Vec* t) {
    const Vec two = Vec::broadcast(2), four = Vec::broadcast(4), five = Vec::broadcast(5);
    const Vec d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step], d4 = d[4 * step], d5 = d[5 * step];
    const Vec even = Vec::fnma(four, d2, d4), odd = Vec::fnma(four, d1, d3), narrow = d4 - d2, wide = d3 - d1;
    t[0] = Vec::fma(four, d0, Vec::fnma(five, d2, d4));
    t[1 * step] = even + odd;
    t[2 * step] = even - odd;
    t[3 * step] = Vec::fma(two, wide, narrow);
    t[4 * step] = Vec::fnma(two, wide, narrow);
    t[5 * step] = Vec::fma(four, d1, Vec::fnma(five, d3, d5));
  }

  // Transforms three weights into six.
  static void filter(Vec a, Vec b, Vec c, Vec* t, int step) {
    const Vec sixth = Vec::broadcast(1.0f / 6), twelfth = Vec::broadcast(1.0f / 12);
    const Vec ends = sixth * (a + c), middle = sixth * b;
    const Vec far_ends = Vec::fma(Vec::broadcast(1.0f / 24), a, sixth * c), far_middle = twelfth * b;
    t[0] = Vec::broadcast(0.25f) * a;
    t[1 * step] = Vec::zero() - ends - middle;
    t[2 * step] = middle - ends;
    t[3 * step] = far_ends + far_middle;
    t[4 * step] = far_ends - far_middle;
    t[5 * step] = c;
  }

  // Transforms six sums into four.
  static void sums(const Vec* m, int m_stride, Vec* y, int y_stride) {
    const Vec near_sum = m[m_stride] + m[2 * m_stride], near_difference = m[m_stride] - m[2 * m_stride];
    const Vec far_sum = m[3 * m_stride] + m[4 * m_stride], far_difference = m[3 * m_stride] - m[4 * m_stride];
    y[0] = m[0] + near_sum + far_sum;
    y[1 * y_stride] = Vec::fma(Vec::broadcast(2), far_difference, near_difference);
    y[2 * y_stride] = Vec::fma(Vec::broadcast(4), far_sum, near_sum);
    y[3 * y_stride] = Vec::fma(Vec::broadcast(8), far_difference, near_difference) + m[5 * m_stride];
  }
};

// Every second pixel is an image of its own, and so is the other half: outputs are those of two taps on the first,
// F(4, 2) at the points 0, 1, -1, 2 and infinity, plus those of the middle tap on the second, four plain products: nine
// multiplications for twelve.
struct WinogradStride2 {
  static constexpr int stride = 2, in_tile = 9;

  static void pixels(const Vec* d, int step, Vec* t) {
    const Vec two = Vec::broadcast(2), three = Vec::broadcast(3);
    const Vec d0 = d[0], d1 = d[2 * step], d2 = d[4 * step], d3 = d[6 * step], d4 = d[8 * step];
    t[0] = Vec::fma(two, d0 - d2, d3 - d1);
    t[1 * step] = Vec::fnma(two, d1, d3 - d2);
    t[2 * step] = Vec::fma(two, d1, Vec::fnma(three, d2, d3));
    t[3 * step] = d3 - d1;
    t[4 * step] = Vec::fma(two, d1 - d3, d4 - d2);
    for (int i = 0; i < 4; ++i) t[(5 + i) * step] = d[(2 * i + 1) * step];
  }

  // Transforms three weights into nine, of which the last four are equal.
  static void filter(Vec a, Vec b, Vec c, Vec* t, int step) {
    const Vec sixth = Vec::broadcast(1.0f / 6), half = Vec::broadcast(0.5f);
    t[0] = half * a;
    t[1 * step] = Vec::zero() - half * (a + c);
    t[2 * step] = sixth * (c - a);
    t[3 * step] = sixth * Vec::fma(Vec::broadcast(2), c, a);
    t[4 * step] = c;
    for (int i = 0; i < 4; ++i) t[(5 + i) * step] = b;
  }

  // Transforms nine sums into four.
  static void sums(const Vec* m, int m_stride, Vec* y, int y_stride) {
    const Vec m1 = m[m_stride], m2 = m[2 * m_stride], m3 = m[3 * m_stride];
    const Vec sum = m1 + m2, difference = m1 - m2;
    y[0] = m[0] + sum + (m3 + m[5 * m_stride]);
    y[1 * y_stride] = Vec::fma(Vec::broadcast(2), m3, difference) + m[6 * m_stride];
    y[2 * y_stride] = Vec::fma(Vec::broadcast(4), m3, sum) + m[7 * m_stride];
    y[3 * y_stride] = Vec::fma(Vec::broadcast(8), m3, difference) + (m[4 * m_stride] + m[8 * m_stride]);
  }
};

}  // namespace
}  // namespace prefiqs
