#pragma once
#include <cstring>

#include "cuda/im2col.h"
#include "emulator.h"

namespace prefiqs::cuda {

struct TensorMap {
  Im2colMap im2col;
  TiledMap tiled;
};

// The limits that the driver checks.
inline bool encodable(const void* data, const uint64_t* dims, int rank, const uint64_t* strides) {
  bool fine = reinterpret_cast<uintptr_t>(data) % 16 == 0;
  for (int i = 0; i < rank; ++i) fine = fine && dims[i] > 0 && dims[i] <= uint64_t{1} << 32;
  for (int i = 0; i < rank - 1; ++i) fine = fine && strides[i] % 16 == 0 && strides[i] < uint64_t{1} << 40;
  return fine;
}

template <class T>
cudaError_t encode(TensorMap& out, const Im2colMap& map) {
  bool fine = encodable(map.data, map.dims, 4, map.strides) && map.channels * 2 <= 128 && map.pixels <= 1024;
  for (int i = 0; i < 2; ++i) {
    fine = fine && map.lower[i] >= -128 && map.lower[i] <= 127 && map.upper[i] >= -128 && map.upper[i] <= 127;
  }
  for (const uint32_t step : map.traversal) fine = fine && step >= 1 && step <= 8;
  out.im2col = map;
  return fine ? cudaSuccess : cudaErrorInvalidValue;
}

template <class T>
cudaError_t encode(TensorMap& out, const TiledMap& map) {
  const bool fine = encodable(map.data, map.dims, 3, map.strides) && map.box[0] * 2 <= 128 && map.box[2] <= 256;
  out.tiled = map;
  return fine ? cudaSuccess : cudaErrorInvalidValue;
}

// One row of a box: 16-byte chunks permuted by the address's bits 7 to 9; zeros outside the tensor.
inline void land_row(unsigned char* box, int row, const unsigned char* src, int64_t channels, uint64_t limit) {
  for (int i = 0; i < 64; ++i) {
    const int plain = row * 128 + i * 2, place = plain ^ (plain >> 7 & 7) << 4;
    const bool inside = src != nullptr && channels + i < static_cast<int64_t>(limit);
    if (inside) emulation::check_access("copy engine", src + i * 2, 2);
    if (inside) {
      std::memcpy(box + place, src + i * 2, 2);
    } else {
      std::memset(box + place, 0, 2);
    }
  }
}

// The rules of CUDA's driver reference: from its first pixel a box goes along w, then h, then the images, within the
// bounding box that lower corner and upper corner leave of an image; every pixel is read at the tap's offset from it.
inline void copy_im2col(
    uint32_t dst, const TensorMap& tensor, uint32_t barrier, int channel, PixelPlace place, int s, int r) {
  if (s < 0 || s > 255 || r < 0 || r > 255) emulation::fail("im2col: offset out of range");
  const Im2colMap map = tensor.im2col;
  emulation::engine_copy(dst, map.pixels * 128, barrier, [=](unsigned char* box) {
    const int in_w = static_cast<int>(map.dims[1]), in_h = static_cast<int>(map.dims[2]);
    int w = place.w, h = place.h;
    int64_t image = place.image;
    for (int i = 0; i < static_cast<int>(map.pixels); ++i) {
      const int64_t col = w + s, row = h + r;
      const bool inside =
          col >= 0 && col < in_w && row >= 0 && row < in_h && image >= 0 && image < static_cast<int64_t>(map.dims[3]);
      const auto* pixel = static_cast<const unsigned char*>(map.data) + col * static_cast<int64_t>(map.strides[0]) +
                          row * static_cast<int64_t>(map.strides[1]) + image * static_cast<int64_t>(map.strides[2]) +
                          channel * 2;
      land_row(box, i, inside ? pixel : nullptr, channel, map.dims[0]);
      w += static_cast<int>(map.traversal[1]);
      if (w < in_w + map.upper[0]) continue;
      w = map.lower[0];
      h += static_cast<int>(map.traversal[2]);
      if (h < in_h + map.upper[1]) continue;
      h = map.lower[1];
      ++image;
    }
  });
}

inline void copy_tile(uint32_t dst, const TensorMap& tensor, uint32_t barrier, int channel, int tap, int row) {
  const TiledMap map = tensor.tiled;
  emulation::engine_copy(dst, map.box[2] * 128, barrier, [=](unsigned char* box) {
    for (int i = 0; i < static_cast<int>(map.box[2]); ++i) {
      const bool inside = row + i < static_cast<int64_t>(map.dims[2]);
      const auto* filter = static_cast<const unsigned char*>(map.data) + tap * static_cast<int64_t>(map.strides[0]) +
                           (row + i) * static_cast<int64_t>(map.strides[1]) + channel * 2;
      land_row(box, i, inside ? filter : nullptr, channel, map.dims[0]);
    }
  });
}

}  // namespace prefiqs::cuda
