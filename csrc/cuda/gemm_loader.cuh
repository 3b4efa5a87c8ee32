// Loads one step of K into a stage of the ring: filters and one or two sources of pixels, 64 bytes a row, and one mask
// word for each filter.
//
// If the channels divide by 32, the steps go through all taps of 32 channels, then on to the next 32: the nine taps of
// a pixel then find in first-level cache what the first of them fetched. Else they go through k = (r, s, c) in order.
// A thread loads the same 16 bytes of a step (8 values of K) of every rows_step-th row. The four 16-byte chunks of a
// row are permuted so that the banks do not conflict, neither for eight threads that store two rows nor for ldmatrix,
// which reads one chunk of eight rows.
#pragma once
#include "cuda/conv.cuh"
#include "cuda/ptx/cp_async.cuh"

namespace prefiqs::cuda {

constexpr int row_bytes = k_step * 2;

// The byte offset of a chunk in a tile of 64-byte rows. Rows eight apart are permuted alike.
__device__ inline int swizzled(int row, int chunk) { return row * row_bytes + ((chunk ^ (row >> 1 & 3)) << 4); }

// What a block computes.
struct BlockWork {
  int group;
  int channel;   // the first, in the whole layer
  int channels;  // from there to the end of the group
  int pixel_tile;
  int segment;      // the first
  int step, steps;  // the first of its steps, and how many
};

// Where a value of K comes from: a tap and a channel of the group. Past the end of K, r is too large.
struct Tap {
  int r, s, channel;

  __device__ Tap(const Conv& p, int step, int k_in_step) {
    const int k = step * k_step + k_in_step;
    const int tap = taps_inside(p) ? step % p.taps : k / p.group_in_c;
    r = tap / p.kernel_w;
    s = tap % p.kernel_w;
    channel = taps_inside(p) ? step / p.taps * k_step + k_in_step : k % p.group_in_c;
  }

  __device__ static bool taps_inside(const Conv& p) { return p.group_in_c % k_step == 0; }

  __device__ int k(const Conv& p) const { return (r * p.kernel_w + s) * p.group_in_c + channel; }

  // Moves to the same place of the next step.
  __device__ void next_step(const Conv& p) {
    if (!taps_inside(p)) return advance(p, k_step);
    if (++s < p.kernel_w) return;
    s = 0;
    if (++r < p.kernel_h) return;
    r = 0;
    channel += k_step;
  }

  // Moves by `count` along k.
  __device__ void advance(const Conv& p, int count) {
    channel += count;
    while (channel >= p.group_in_c) {
      channel -= p.group_in_c;
      if (++s == p.kernel_w) {
        s = 0;
        ++r;
      }
    }
  }
};

template <class Shape, Mode mode, bool plain, class T>
class Loader {
 public:
  static constexpr int weight_bytes = Shape::channels * row_bytes;
  static constexpr int sources = mode == Mode::masked_shared ? 1 : 2;
  static constexpr int pixel_bytes = sources * Shape::pixels * row_bytes;
  static constexpr int mask_bytes = mode == Mode::unmasked ? 0 : Shape::channels * 4;
  static constexpr int stage_bytes = weight_bytes + pixel_bytes + mask_bytes;

  __device__ Loader(const Conv& p, const BlockWork& work)
      : p_(p),
        first_row_(threadIdx.x / 4),
        place_(swizzled(first_row_, threadIdx.x % 4)),
        channels_(work.channels),
        tap_(p, work.step, threadIdx.x % 4 * 8),
        weight_(static_cast<const T*>(p.weight) + (work.channel + first_row_) * static_cast<int64_t>(p.depth)),
        words_(p.mask + (work.channel + threadIdx.x) * static_cast<int64_t>(p.mask_words)) {
#pragma unroll
    for (int i = 0; i < pixel_rows; ++i) {
      const int pixel = work.pixel_tile * tile_pixels + first_row_ + i * rows_step;
      const int position = pixel / p.out_w, image = position / p.out_h;
      const int row = position % p.out_h * p.stride_h - p.pad_h, col = pixel % p.out_w * p.stride_w - p.pad_w;
      // Past the last pixel every tap is outside.
      row_[i] = pixel < p.pixels ? row : outside;
      col_[i] = col;
      const int64_t place =
          image * p.in_plane + (static_cast<int64_t>(row) * p.in_w + col) * p.in_c + work.group * p.group_in_c;
      src_[i] = static_cast<const unsigned char*>(p.src) + place * value_bytes();
    }
  }

  // Loads the next step into `stage`.
  __device__ void load(unsigned char* stage) {
    const int k = tap_.k(p_);
    if constexpr (plain) {
      load_plain(stage, k);
    } else {
      load_async(shared_address(stage), k);
    }
    if constexpr (mode != Mode::unmasked) {
      static_assert(Shape::channels <= Shape::threads, "a thread loads one mask word");
      const int filter = threadIdx.x;
      if (filter < Shape::channels) {
        cp_async_4(shared_address(stage) + weight_bytes + pixel_bytes + filter * 4,
                   words_ + static_cast<uint32_t>(k) / k_step, filter < channels_);
      }
    }
    tap_.next_step(p_);
  }

 private:
  static constexpr int rows_step = Shape::threads / 4;
  static_assert(rows_step % 8 == 0, "all rows of a thread are permuted alike");
  static constexpr int weight_rows = Shape::channels / rows_step;
  // In the masked modes a pixel of one source has its twin in the other, at a fixed distance.
  static constexpr int tile_pixels = Shape::pixels * (mode == Mode::unmasked ? 2 : 1);
  static constexpr int pixel_rows = tile_pixels / rows_step;
  static constexpr int outside = INT32_MIN / 2;

  __device__ bool inside(int i, const Tap& tap) const {
    const int row = row_[i] + tap.r * p_.dilation_h, col = col_[i] + tap.s * p_.dilation_w;
    return row >= 0 && row < p_.in_h && col >= 0 && col < p_.in_w;
  }

  __device__ int value_bytes() const { return plain && p_.src_uint8 ? 1 : 2; }

  __device__ int offset(const Tap& tap) const {
    return (tap.r * p_.dilation_h * p_.in_w + tap.s * p_.dilation_w) * p_.in_c + tap.channel;
  }

  __device__ void load_async(uint32_t stage, int k) {
    const bool deep = k < p_.depth;
    const T* filter = weight_ + k;
#pragma unroll
    for (int i = 0; i < weight_rows; ++i) {
      const int row = first_row_ + i * rows_step;
      cp_async_16(stage + place_ + i * rows_step * row_bytes, filter + i * rows_step * static_cast<int64_t>(p_.depth),
                  deep && row < channels_);
    }
    const int tap_offset = offset(tap_) * value_bytes();
#pragma unroll
    for (int i = 0; i < pixel_rows; ++i) {
      const unsigned char* src = src_[i] + tap_offset;
      const bool valid = deep && inside(i, tap_);
      cp_async_16_cached(stage + place_ + weight_bytes + i * rows_step * row_bytes, src, valid);
      if constexpr (mode == Mode::masked_paired) {
        cp_async_16_cached(stage + place_ + weight_bytes + (Shape::pixels + i * rows_step) * row_bytes,
                           src + p_.src_branch * value_bytes(), valid);
      }
    }
  }

  __device__ void load_plain(unsigned char* stage, int k) {
#pragma unroll
    for (int i = 0; i < weight_rows; ++i) {
      const int row = first_row_ + i * rows_step;
      const T* filter = weight_ + k + i * rows_step * static_cast<int64_t>(p_.depth);
      float values[8];
      load_8(values, filter, row < channels_ ? p_.depth - k : 0, false);
      store_chunk(stage + place_ + i * rows_step * row_bytes, values);
    }
#pragma unroll
    for (int i = 0; i < pixel_rows; ++i) {
      for (int source = 0; source < (mode == Mode::masked_paired ? 2 : 1); ++source) {
        float values[8];
        Tap tap = tap_;
#pragma unroll
        for (int j = 0; j < 8; ++j, tap.advance(p_, 1)) {
          const bool valid = k + j < p_.depth && inside(i, tap);
          values[j] = valid ? src_value(src_[i] + (source * p_.src_branch + offset(tap)) * value_bytes()) : 0.f;
        }
        store_chunk(stage + place_ + weight_bytes + (source * Shape::pixels + i * rows_step) * row_bytes, values);
      }
    }
  }

  // Levels 0 to 255 are exact in either type.
  __device__ float src_value(const unsigned char* src) const {
    return p_.src_uint8 ? *src : to_float(*reinterpret_cast<const T*>(src));
  }

  __device__ static void store_chunk(unsigned char* dst, const float (&values)[8]) {
    store_8(reinterpret_cast<T*>(dst), values, 8, true);
  }

  const Conv& p_;
  int first_row_, place_, channels_;
  Tap tap_;
  const T* weight_;                        // of the thread's first row
  const uint32_t* words_;                  // of the filter whose mask it loads
  int row_[pixel_rows], col_[pixel_rows];  // of tap (0, 0); may lie outside
  const unsigned char* src_[pixel_rows];   // at tap (0, 0)
};

}  // namespace prefiqs::cuda
