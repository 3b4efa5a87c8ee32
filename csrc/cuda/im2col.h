// What the tensor copy engine must know about a layer, as plain numbers: the fields of its two tensor maps, the place
// of a tile's first pixel, and where 16 bytes land in swizzled shared memory. Tested on the CPU against plain loops.
#pragma once
#include "cuda/conv.cuh"

namespace prefiqs::cuda {

constexpr int copy_channels = 64;                  // of a row in shared memory
constexpr int copy_row_bytes = copy_channels * 2;  // the width of the swizzle

// Fields of cuTensorMapEncodeIm2col over [images, in_h, in_w, in_c], innermost first; strides in bytes, from the second
// dimension on. A corner is where tap (0, 0) of the first and of the last output lies, from the first and the last
// pixel.
struct Im2colMap {
  const void* data;
  uint64_t dims[4], strides[3];
  int lower[2], upper[2];  // (w, h)
  uint32_t traversal[4];   // steps between the pixels of a box
  uint32_t channels, pixels;
};

// Fields of cuTensorMapEncodeTiled over the weights as [out_c, taps, in_c], innermost first.
struct TiledMap {
  const void* data;
  uint64_t dims[3], strides[2];
  uint32_t box[3];
};

inline Im2colMap im2col_map(const Conv& p, int pixels) {
  const bool second_source = p.src_branch != 0 && p.mode == Mode::masked_paired;
  Im2colMap map{};
  map.data = p.src;
  const uint64_t sizes[4] = {static_cast<uint64_t>(p.in_c), static_cast<uint64_t>(p.in_w),
                             static_cast<uint64_t>(p.in_h), static_cast<uint64_t>(p.images) * (second_source ? 2 : 1)};
  for (int i = 0; i < 4; ++i) map.dims[i] = sizes[i];
  map.strides[0] = sizes[0] * 2;
  map.strides[1] = map.strides[0] * sizes[1];
  map.strides[2] = map.strides[1] * sizes[2];
  map.lower[0] = -p.pad_w;
  map.lower[1] = -p.pad_h;
  map.upper[0] = p.pad_w - (p.kernel_w - 1) * p.dilation_w;
  map.upper[1] = p.pad_h - (p.kernel_h - 1) * p.dilation_h;
  map.traversal[0] = map.traversal[3] = 1;
  map.traversal[1] = static_cast<uint32_t>(p.stride_w);
  map.traversal[2] = static_cast<uint32_t>(p.stride_h);
  map.channels = copy_channels;
  map.pixels = static_cast<uint32_t>(pixels);
  return map;
}

inline TiledMap weight_map(const Conv& p, int channels) {
  TiledMap map{};
  map.data = p.weight;
  map.dims[0] = static_cast<uint64_t>(p.in_c);
  map.dims[1] = static_cast<uint64_t>(p.taps);
  map.dims[2] = static_cast<uint64_t>(p.out_c);
  map.strides[0] = map.dims[0] * 2;
  map.strides[1] = map.strides[0] * map.dims[1];
  map.box[0] = copy_channels;
  map.box[1] = 1;
  map.box[2] = static_cast<uint32_t>(channels);
  return map;
}

// The limits of a map of four dimensions: a corner is eight bits with sign, a tap's offset eight without, a step at
// most 8; a pixel's channels start at multiples of 16 bytes.
inline bool fits_im2col(const Conv& p) {
  const auto axis = [](int kernel, int stride, int pad, int dilation) {
    const int64_t reach = static_cast<int64_t>(kernel - 1) * dilation;
    return pad <= 127 && reach <= 255 && pad - reach >= -128 && stride <= 8;
  };
  return !p.src_uint8 && p.in_c % 8 == 0 && axis(p.kernel_h, p.stride_h, p.pad_h, p.dilation_h) &&
         axis(p.kernel_w, p.stride_w, p.pad_w, p.dilation_w);
}

// Where tap (0, 0) of an output pixel lies. Past the last pixel it lies in an image that does not exist and reads as
// zeros.
struct PixelPlace {
  int w, h, image;

  __host__ __device__ PixelPlace(const Conv& p, int pixel)
      : w(pixel % p.out_w * p.stride_w - p.pad_w),
        h(pixel / p.out_w % p.out_h * p.stride_h - p.pad_h),
        image(pixel / (p.out_w * p.out_h)) {}
};

// The 128-byte swizzle: byte offset of a 16-byte chunk in a tile of 128-byte rows that begins at a multiple of 1024.
__host__ __device__ constexpr int swizzled_128(int row, int chunk) {
  return row * copy_row_bytes + ((chunk ^ (row & 7)) << 4);
}

// wgmma's descriptor of a tile of such rows, K innermost: address, 1024 bytes from eight rows to the next, swizzle of
// 128 bytes (all in units of 16). The 16 columns `k16` begin 32 bytes further each.
__host__ __device__ constexpr uint64_t swizzled_descriptor(uint32_t address, int k16) {
  return ((address + static_cast<uint32_t>(k16) * 32) >> 4 & 0x3fff) | uint64_t{1} << 16 | uint64_t{64} << 32 |
         uint64_t{1} << 62;
}

// A step of a sum, the first to begin with: all taps of 64 channels, then of the next 64. The steps depend on the
// layer's shape alone.
struct CopyStep {
  int r = 0, s = 0, tap = 0, channel = 0;

  __host__ __device__ int k(const Conv& p) const { return tap * p.in_c + channel; }
  __host__ __device__ void next(const Conv& p) {
    ++tap;
    if (++s < p.kernel_w) return;
    s = 0;
    if (++r < p.kernel_h) return;
    r = tap = 0;
    channel += copy_channels;
  }
};

inline __host__ __device__ int copy_steps(const Conv& p) { return p.taps * ceil_div(p.in_c, copy_channels); }

}  // namespace prefiqs::cuda
