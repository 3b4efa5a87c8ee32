// Depthwise convolution, one filter for each channel: dst[pixel, c] = sum over taps of weight[c, tap] * src[pixel +
// tap, c], added in float32.
//
// Layout: a block computes 64 channels of 16 strips of four output pixels of a row; a thread, eight channels of a
// strip. In shared memory: 32 taps (one mask word) of the 64 filters as floats, [tap][branch][channel], the second
// branch masked. In registers: all sums. Loop: for each 32 taps: fetch them; for each tap: read the weights of both
// branches; for each pixel: read its eight channels (once if both branches read the same source) and add.
#include "cuda/epilogue.cuh"
#include "cuda/gemm_plan.h"

namespace prefiqs::cuda {
namespace {

constexpr int threads = 128, block_channels = 64, chunks = block_channels / 8;
constexpr int block_strips = threads / chunks, strip = 4, block_taps = 32;

// Loads `count` channels of a pixel, whatever type src has.
template <class T>
__device__ void load_src(const Conv& p, float (&values)[8], int64_t place, int count, bool vector) {
  if (p.src_uint8) {
    const auto* levels = static_cast<const uint8_t*>(p.src) + place;
#pragma unroll
    for (int i = 0; i < 8; ++i) values[i] = i < count ? levels[i] : 0.f;
  } else {
    load_8(values, static_cast<const T*>(p.src) + place, count, vector);
  }
}

template <class T, int branches>
__device__ void fetch_weights(const Conv& p, int channel, int first_tap, float* weights) {
  const int taps = min_of(block_taps, p.taps - first_tap);
  for (int i = threadIdx.x; i < taps * block_channels; i += threads) {
    const int c = channel + i % block_channels, tap = i / block_channels;
    float* place = weights + tap * branches * block_channels + i % block_channels;
    const bool valid = c < p.out_c;
    const float weight =
        valid ? to_float(static_cast<const T*>(p.weight)[static_cast<int64_t>(c) * p.taps + first_tap + tap]) : 0.f;
    place[0] = weight;
    if constexpr (branches == 2) {
      const bool keep = valid && (p.mask[static_cast<int64_t>(c) * p.mask_words + first_tap / 32] >> tap & 1) != 0;
      place[block_channels] = keep ? weight : 0.f;
    }
  }
}

template <class T, Mode mode>
__global__ void __launch_bounds__(threads, 3) depthwise_conv(const __grid_constant__ Conv p) {
  constexpr int branches = mode == Mode::unmasked ? 1 : 2;
  constexpr int sources = mode == Mode::masked_paired ? 2 : 1;
  auto* weights = reinterpret_cast<float*>(shared_memory());
  const int channel_blocks = ceil_div(p.out_c, block_channels), strips = ceil_div(p.out_w, strip);
  const int block_channel = static_cast<int>(blockIdx.x) % channel_blocks * block_channels;
  const int chunk = threadIdx.x % chunks, channel = block_channel + chunk * 8, count = min_of(8, p.out_c - channel);
  const int index = static_cast<int>(blockIdx.x) / channel_blocks * block_strips + threadIdx.x / chunks;
  const int first = index % strips * strip, out_row = index / strips % p.out_h, image = index / strips / p.out_h;
  const bool active = count > 0 && image < p.images, vector = p.out_c % 8 == 0;
  const int row = out_row * p.stride_h - p.pad_h, col = first * p.stride_w - p.pad_w;
  const int64_t src = image * p.in_plane + channel;

  float sums[branches][strip][8] = {};
  int r = 0, s = 0;
  for (int first_tap = 0; first_tap < p.taps; first_tap += block_taps) {
    __syncthreads();
    fetch_weights<T, branches>(p, block_channel, first_tap, weights);
    __syncthreads();
    const int taps = min_of(block_taps, p.taps - first_tap);
    for (int tap = 0; tap < taps; ++tap) {
      const int in_row = row + r * p.dilation_h, in_col = col + s * p.dilation_w;
      if (++s == p.kernel_w) {
        s = 0;
        ++r;
      }
      if (!active || in_row < 0 || in_row >= p.in_h) continue;
      float weight[branches][8];
#pragma unroll
      for (int branch = 0; branch < branches; ++branch) {
        load_8(weight[branch], weights + (tap * branches + branch) * block_channels + chunk * 8, 8, true);
      }
#pragma unroll
      for (int pixel = 0; pixel < strip; ++pixel) {
        const int c = in_col + pixel * p.stride_w;
        if (c < 0 || c >= p.in_w || first + pixel >= p.out_w) continue;
        const int64_t place = src + (static_cast<int64_t>(in_row) * p.in_w + c) * p.in_c;
        float values[sources][8];
#pragma unroll
        for (int source = 0; source < sources; ++source) {
          load_src<T>(p, values[source], place + source * p.src_branch, count, vector);
        }
#pragma unroll
        for (int branch = 0; branch < branches; ++branch) {
#pragma unroll
          for (int i = 0; i < 8; ++i) {
            sums[branch][pixel][i] = fmaf(weight[branch][i], values[branch % sources][i], sums[branch][pixel][i]);
          }
        }
      }
    }
  }
  if (!active) return;
#pragma unroll
  for (int branch = 0; branch < branches; ++branch) {
    const Epilogue<T> epilogue(p, branch, channel, count, vector, TapShift::in_place(p, branch, channel));
#pragma unroll
    for (int pixel = 0; pixel < strip; ++pixel) {
      if (first + pixel >= p.out_w) continue;
      epilogue.finish(sums[branch][pixel], (image * p.out_h + out_row) * p.out_w + first + pixel);
    }
  }
}

template <class T, Mode mode>
cudaError_t launch_mode(const Conv& p, cudaStream_t stream) {
  constexpr int branches = mode == Mode::unmasked ? 1 : 2;
  const int64_t strips = static_cast<int64_t>(p.images) * p.out_h * ceil_div(p.out_w, strip);
  const int64_t blocks = (strips + block_strips - 1) / block_strips * ceil_div(p.out_c, block_channels);
  return launch(depthwise_conv<T, mode>, blocks, threads, block_taps * branches * block_channels * 4, stream, p);
}

}  // namespace

template <class T>
cudaError_t launch_depthwise(const Conv& p, cudaStream_t stream) {
  switch (p.mode) {
    case Mode::unmasked:
      return launch_mode<T, Mode::unmasked>(p, stream);
    case Mode::masked_shared:
      return launch_mode<T, Mode::masked_shared>(p, stream);
    case Mode::masked_paired:
      return launch_mode<T, Mode::masked_paired>(p, stream);
  }
  return cudaErrorInvalidValue;
}

template cudaError_t launch_depthwise<Float16>(const Conv&, cudaStream_t);
template cudaError_t launch_depthwise<BFloat16>(const Conv&, cudaStream_t);

}  // namespace prefiqs::cuda
