// The constant part of an output pixel: the bias, and the tap shifts of the taps that fall inside the image. Near the
// border fewer taps do. They form a rectangle that depends on the pixel's row and on its column and takes few distinct
// values, the classes; so the constants are a small table, made once a call.
#pragma once
#include <cstdint>
#include <vector>

namespace prefiqs {

// For every output position along one axis, the class of its range of taps [begin, end) that fall inside the image.
// Along the axis neither end ever grows, so positions of one class are neighbours.
struct TapRanges {
  std::vector<int32_t> position_class;
  std::vector<int64_t> begin, end;  // of each class

  TapRanges(int64_t in, int64_t out, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation) {
    for (int64_t o = 0; o < out; ++o) {
      int64_t first = 0, last = kernel;
      while (first < last && o * stride - pad + first * dilation < 0) ++first;
      while (first < last && o * stride - pad + (last - 1) * dilation >= in) --last;
      if (begin.empty() || begin.back() != first || end.back() != last) {
        begin.push_back(first);
        end.push_back(last);
      }
      position_class.push_back(static_cast<int32_t>(begin.size() - 1));
    }
  }
  int64_t classes() const { return static_cast<int64_t>(begin.size()); }
};

// Returns [tables][row class][column class][channels]. bias is [channels] and, from table to table, bias_table_stride
// apart; tap_shift is [tables][channels][kernel_h][kernel_w].
inline std::vector<float> bias_by_class(const TapRanges& rows,
                                        const TapRanges& cols,
                                        int64_t tables,
                                        int64_t channels,
                                        int64_t kernel_h,
                                        int64_t kernel_w,
                                        const float* bias,
                                        int64_t bias_table_stride,
                                        const float* tap_shift) {
  std::vector<float> result;
  result.reserve(static_cast<size_t>(tables * rows.classes() * cols.classes() * channels));
  for (int64_t table = 0; table < tables; ++table) {
    for (size_t row = 0; row < rows.begin.size(); ++row) {
      for (size_t col = 0; col < cols.begin.size(); ++col) {
        for (int64_t c = 0; c < channels; ++c) {
          double sum = bias == nullptr ? 0.0 : bias[table * bias_table_stride + c];
          for (int64_t r = rows.begin[row]; r < rows.end[row]; ++r) {
            for (int64_t s = cols.begin[col]; s < cols.end[col]; ++s) {
              sum += tap_shift[((table * channels + c) * kernel_h + r) * kernel_w + s];
            }
          }
          result.push_back(static_cast<float>(sum));
        }
      }
    }
  }
  return result;
}

}  // namespace prefiqs
