// What turns a finished sum into an output: scale (of the pruned branch), bias and tap shifts, residual, activation,
// rounding.
//
// A thread finishes eight neighbouring channels of many pixels and keeps their constants in registers. Only taps inside
// the image have a shift, so a pixel near the border adds up the shifts of its own taps anew.
#pragma once
#include "cuda/conv.cuh"

namespace prefiqs::cuda {

// Where the shifts of a thread's eight channels are: in tap_shift itself, or in a copy in shared memory.
class TapShift {
 public:
  __device__ static TapShift in_place(const Conv& p, int branch, int channel) {
    if (p.tap_shift == nullptr) return {nullptr, 0, 0};
    return {p.tap_shift + (static_cast<int64_t>(branch) * p.out_c + channel) * p.taps, p.taps, 0};
  }

  // Copies the shifts of `count` of at most `channels` filters to `copy`, by `threads` threads, of which neighbours
  // have neighbouring chunks of eight channels; a barrier has to follow. The lower four channels of a tap's chunks lie
  // side by side, then the upper four: neighbouring threads read neighbouring 16 bytes.
  template <int channels, int threads>
  __device__ static TapShift copied(const Conv& p, int branch, int first_channel, int count, float* copy) {
    if (p.tap_shift == nullptr) return {nullptr, 0, 0};
    const int channel = threadIdx.x % channels;
    const float* shifts = in_place(p, branch, first_channel + channel).values_;
    float* place = copy + channel / 4 % 2 * (channels / 2) + channel / 8 * 4 + channel % 4;
    if (channel < count) {
      for (int tap = threadIdx.x % threads / channels; tap < p.taps; tap += threads / channels) {
        place[tap * channels] = shifts[tap];
      }
    }
    return {copy + threadIdx.x % (channels / 8) * 4, p.taps, channels};
  }

  __device__ bool exists() const { return values_ != nullptr; }

  // Adds the shifts of a tap to the sums of `count` channels; what it adds to the others means nothing.
  __device__ void add(float (&sums)[8], int tap, int count) const {
    float shifts[8];
    if (copied_channels_ != 0) {
      const float* place = values_ + tap * copied_channels_;
      const float4 low = load_16<float4>(place), high = load_16<float4>(place + copied_channels_ / 2);
      shifts[0] = low.x, shifts[1] = low.y, shifts[2] = low.z, shifts[3] = low.w;
      shifts[4] = high.x, shifts[5] = high.y, shifts[6] = high.z, shifts[7] = high.w;
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i) shifts[i] = i < count ? values_[i * taps_ + tap] : 0.f;
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) sums[i] += shifts[i];
  }

 private:
  __device__ TapShift(const float* values, int taps, int copied_channels)
      : values_(values), taps_(taps), copied_channels_(copied_channels) {}

  const float* values_;         // of the first channel; null: there are none
  int taps_, copied_channels_;  // of the copy, 0: in place
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
        fetches_(p.residual != nullptr && !p.dst_float && vector_),
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

  // Fetches the residual of a pixel of the branch, if it lies before `end`, for a later `finish` that need not wait for
  // it. It stays as it lies in memory until then. Only 16-bit vectors are fetched ahead: they take four registers.
  __device__ uint4 fetch_residual(int pixel, int end) const {
    if (!fetches_ || pixel >= end) return {};
    return load_16<uint4>(static_cast<const T*>(p_.residual) + residual_place(pixel));
  }

  // Turns `sums` into the outputs of a pixel of the branch.
  __device__ void finish(float (&sums)[8], int pixel) const { finish(sums, pixel, fetch_residual(pixel, pixel + 1)); }

  __device__ void finish(float (&sums)[8], int pixel, const uint4& fetched) const {
    scale_and_shift(sums, pixel);
    if (p_.residual != nullptr) {
      float residual[8];
      if (fetches_) {
        unpack_8<T>(residual, fetched);
      } else if (p_.dst_float) {
        load_8(residual, static_cast<const float*>(p_.residual) + residual_place(pixel), count_, vector_);
      } else {
        load_8(residual, static_cast<const T*>(p_.residual) + residual_place(pixel), count_, false);
      }
#pragma unroll
      for (int i = 0; i < 8; ++i) sums[i] += residual[i];
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) sums[i] = sums[i] >= 0.f ? sums[i] : slope_[i] * sums[i];
    const int64_t place = static_cast<int64_t>(first_pixel_ + pixel) * p_.out_c + channel_;
    if (p_.dst_float) {
      store_8(static_cast<float*>(p_.dst) + place, sums, count_, vector_);
    } else {
      store_8(static_cast<T*>(p_.dst) + place, sums, count_, vector_);
    }
  }

 private:
  __device__ int64_t residual_place(int pixel) const {
    const int row = first_pixel_ + pixel;
    return static_cast<int64_t>(row < p_.residual_pixels ? row : row - p_.residual_pixels) * p_.out_c + channel_;
  }

  // Bias and shifts of a rectangle of taps, always added in the same order.
  __device__ void constants(float (&sums)[8], int row_begin, int row_end, int col_begin, int col_end) const {
#pragma unroll
    for (int i = 0; i < 8; ++i) sums[i] = bias_ != nullptr && i < count_ ? bias_[i] : 0.f;
    if (!shift_.exists()) return;
    for (int r = row_begin; r < row_end; ++r) {
      for (int s = col_begin; s < col_end; ++s) {
        shift_.add(sums, r * p_.kernel_w + s, count_);
      }
    }
  }

  __device__ void scale_and_shift(float (&sums)[8], int pixel) const {
    if (shift_.exists()) {
      const int row = p_.by_out_h.remainder(p_.by_out_w.quotient(pixel)), col = p_.by_out_w.remainder(pixel);
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
  bool vector_, fetches_;
  const float* bias_;  // read again near the border, which is rare, to save registers
  TapShift shift_;
  float scale_[8], constant_[8], slope_[8];
};

}  // namespace prefiqs::cuda
