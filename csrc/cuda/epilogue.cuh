// What turns a finished sum into an output: scale (of the pruned branch), bias and tap shifts, residual, activation,
// rounding.
//
// A thread finishes eight neighbouring channels of many pixels and keeps their constants in registers. Only taps inside
// the image have a shift, so a pixel near the border adds up the shifts of its own taps anew.
#pragma once
#include "cuda/conv.cuh"

namespace prefiqs::cuda {

// Where the shifts of a thread's eight channels are: in tap_shift itself, or in a copy in shared memory.
struct TapShift {
  const float* values;  // of the first channel; null: there are none
  int tap_stride, channel_stride;

  __device__ static TapShift in_place(const Conv& p, int branch, int channel) {
    if (p.tap_shift == nullptr) return {nullptr, 0, 0};
    return {p.tap_shift + (static_cast<int64_t>(branch) * p.out_c + channel) * p.taps, 1, p.taps};
  }

  // Copies the shifts of `count` of at most `channels` filters to `copy`, by `threads` threads, of which neighbours
  // have neighbouring chunks of eight channels; a barrier has to follow. The eight channels of a tap lie `channels` / 8
  // apart, so that neighbouring threads read neighbouring banks.
  template <int channels, int threads>
  __device__ static TapShift copied(const Conv& p, int branch, int first_channel, int count, float* copy) {
    constexpr int chunks = channels / 8;
    if (p.tap_shift == nullptr) return {nullptr, 0, 0};
    const float* shifts = in_place(p, branch, first_channel).values;
    for (int i = threadIdx.x % threads; i < min_of(count, channels) * p.taps; i += threads) {
      const int channel = i / p.taps, tap = i % p.taps;
      copy[tap * channels + channel % 8 * chunks + channel / 8] = shifts[i];
    }
    return {copy + threadIdx.x % chunks, channels, chunks};
  }
};

// The taps of one axis that fall inside the image.
struct TapRange {
  int begin, end;

  __device__ TapRange(int position, int in, int kernel, int stride, int pad, int dilation) : begin(0), end(kernel) {
    const int first = position * stride - pad;
    if (first < 0) begin = min_of(kernel, ceil_div(-first, dilation));
    if (first + (kernel - 1) * dilation >= in) end = first >= in ? 0 : (in - 1 - first) / dilation + 1;
  }
};

template <class T>
class Epilogue {
 public:
  // `vector`: every eight channels of a pixel are 16-byte aligned.
  __device__ Epilogue(const Conv& p, int branch, int channel, int count, bool vector, TapShift shift)
      : p_(p),
        first_pixel_(branch * p.pixels),
        channel_(channel),
        count_(count),
        vector_(vector && count >= 8),
        bias_(p.bias == nullptr ? nullptr : p.bias + branch * p.bias_branch + channel),
        shift_(shift) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const bool valid = i < count;
      // A scale of one is none and a slope of one is no activation, bit for bit.
      const bool scaled = branch == 1 && p.pruned_scale != nullptr && valid;
      scale_[i] = scaled ? p.pruned_scale[channel + i] : 1.f;
      slope_[i] = p.slope != nullptr && valid ? p.slope[(channel + i) * p.slope_stride] : 1.f;
    }
    constants(constant_, 0, p.kernel_h, 0, p.kernel_w);
  }

  // Turns `sums` into the outputs of a pixel of the branch.
  __device__ void finish(float (&sums)[8], int pixel) const {
    scale_and_shift(sums, pixel);
    const int64_t row = first_pixel_ + pixel;
    if (p_.residual != nullptr) {
      const int64_t place = (row < p_.residual_pixels ? row : row - p_.residual_pixels) * p_.out_c + channel_;
      float residual[8];
      if (p_.dst_float) {
        load_8(residual, static_cast<const float*>(p_.residual) + place, count_, vector_);
      } else {
        load_8(residual, static_cast<const T*>(p_.residual) + place, count_, vector_);
      }
#pragma unroll
      for (int i = 0; i < 8; ++i) sums[i] += residual[i];
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) sums[i] = sums[i] >= 0.f ? sums[i] : slope_[i] * sums[i];
    const int64_t place = row * p_.out_c + channel_;
    if (p_.dst_float) {
      store_8(static_cast<float*>(p_.dst) + place, sums, count_, vector_);
    } else {
      store_8(static_cast<T*>(p_.dst) + place, sums, count_, vector_);
    }
  }

 private:
  // Bias and shifts of a rectangle of taps, always added in the same order.
  __device__ void constants(float (&sums)[8], int row_begin, int row_end, int col_begin, int col_end) const {
#pragma unroll
    for (int i = 0; i < 8; ++i) sums[i] = bias_ != nullptr && i < count_ ? bias_[i] : 0.f;
    if (shift_.values == nullptr) return;
    for (int r = row_begin; r < row_end; ++r) {
      for (int s = col_begin; s < col_end; ++s) {
        const float* tap = shift_.values + (r * p_.kernel_w + s) * shift_.tap_stride;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          if (i < count_) sums[i] += tap[i * shift_.channel_stride];
        }
      }
    }
  }

  __device__ void scale_and_shift(float (&sums)[8], int pixel) const {
    if (shift_.values != nullptr) {
      const int row = pixel / p_.out_w % p_.out_h, col = pixel % p_.out_w;
      const TapRange rows(row, p_.in_h, p_.kernel_h, p_.stride_h, p_.pad_h, p_.dilation_h);
      const TapRange cols(col, p_.in_w, p_.kernel_w, p_.stride_w, p_.pad_w, p_.dilation_w);
      if (rows.end - rows.begin < p_.kernel_h || cols.end - cols.begin < p_.kernel_w) {
        float border[8];
        constants(border, rows.begin, rows.end, cols.begin, cols.end);
        return scale_and_add(sums, border);
      }
    }
    scale_and_add(sums, constant_);
  }

  // A fused multiply-add takes the place of the addition: the scale costs no instruction.
  __device__ void scale_and_add(float (&sums)[8], const float (&constant)[8]) const {
#pragma unroll
    for (int i = 0; i < 8; ++i) sums[i] = fmaf(scale_[i], sums[i], constant[i]);
  }

  const Conv& p_;
  int first_pixel_, channel_, count_;
  bool vector_;
  const float* bias_;  // read again near the border, which is rare, to save registers
  TapShift shift_;
  float scale_[8], constant_[8], slope_[8];
};

}  // namespace prefiqs::cuda
