// The index arithmetic of csrc/cuda/im2col.h, function by function, for tests/test_im2col.py.
#include "cuda/im2col.h"

namespace {

using namespace prefiqs::cuda;

// images, in_h, in_w, in_c, out_h, out_w, out_c, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h,
// dilation_w, paired
Conv conv_of(const int64_t* n) {
  ConvParams p{};
  p.images = n[0], p.in_h = n[1], p.in_w = n[2], p.in_c = n[3], p.out_h = n[4], p.out_w = n[5], p.out_c = n[6];
  p.kernel_h = n[7], p.kernel_w = n[8], p.stride_h = n[9], p.stride_w = n[10], p.pad_h = n[11], p.pad_w = n[12];
  p.dilation_h = n[13], p.dilation_w = n[14], p.groups = 1;
  static const uint32_t some_mask = 0;
  p.branches = n[15] != 0 ? 2 : 1;
  p.mask = n[15] != 0 ? &some_mask : nullptr;
  return Conv(p);
}

}  // namespace

extern "C" {

int fits(const int64_t* layer) { return fits_im2col(conv_of(layer)); }

// dims 4, strides 3, lower 2, upper 2, traversal 4, channels, pixels
void pixel_map(const int64_t* layer, int pixels, int64_t* out) {
  const Im2colMap map = im2col_map(conv_of(layer), pixels);
  for (const uint64_t value : map.dims) *out++ = static_cast<int64_t>(value);
  for (const uint64_t value : map.strides) *out++ = static_cast<int64_t>(value);
  for (const int value : map.lower) *out++ = value;
  for (const int value : map.upper) *out++ = value;
  for (const uint32_t value : map.traversal) *out++ = value;
  *out++ = map.channels;
  *out = map.pixels;
}

// dims 3, strides 2, box 3
void filter_map(const int64_t* layer, int channels, int64_t* out) {
  const TiledMap map = weight_map(conv_of(layer), channels);
  for (const uint64_t value : map.dims) *out++ = static_cast<int64_t>(value);
  for (const uint64_t value : map.strides) *out++ = static_cast<int64_t>(value);
  for (const uint32_t value : map.box) *out++ = value;
}

void place(const int64_t* layer, int pixel, int* out) {
  const PixelPlace at(conv_of(layer), pixel);
  out[0] = at.w, out[1] = at.h, out[2] = at.image;
}

int steps(const int64_t* layer) { return copy_steps(conv_of(layer)); }

// r, s, channel, k
void step(const int64_t* layer, int index, int* out) {
  const Conv conv = conv_of(layer);
  CopyStep at;
  for (int i = 0; i < index; ++i) at.next(conv);
  out[0] = at.r, out[1] = at.s, out[2] = at.channel, out[3] = at.k(conv);
}

int quotient(int dividend, int divisor) { return Divisor(divisor).quotient(dividend); }
int remainder_of(int dividend, int divisor) { return Divisor(divisor).remainder(dividend); }

int swizzled(int row, int chunk) { return swizzled_128(row, chunk); }

uint64_t descriptor(uint32_t address, int k16) { return swizzled_descriptor(address, k16); }
}
