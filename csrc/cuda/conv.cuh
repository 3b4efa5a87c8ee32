// One convolution as the CUDA kernels read it: ConvParams in 32-bit numbers, which take half the registers.
#pragma once
#include "cuda/divisor.h"
#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/ptx/convert.cuh"
#include "cuda/ptx/vector.cuh"

namespace prefiqs::cuda {

// How the two halves of a block's work differ. Without a mask both branches have the same weights, so a pair is treated
// as one branch with twice the images.
enum class Mode { unmasked, masked_shared, masked_paired };

constexpr int k_step = 32;  // of K at a time, so that every filter has one mask word

__host__ __device__ constexpr int ceil_div(int a, int b) { return a / b + (a % b != 0 ? 1 : 0); }
__host__ __device__ constexpr int min_of(int a, int b) { return a < b ? a : b; }
__host__ __device__ constexpr int max_of(int a, int b) { return a < b ? b : a; }

struct Conv {
  Mode mode;
  int images, branches;
  int in_h, in_w, in_c;
  int out_h, out_w, out_c;
  Divisor by_out_h, by_out_w;
  int kernel_h, kernel_w;
  int stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  int groups, group_in_c, group_out_c;
  int taps, depth, steps;  // steps of k_step in depth
  int pixels;              // of one branch
  int mask_words, slope_stride;
  int bias_branch;            // from a branch's bias to the next one's; 0 where it is shared
  int residual_pixels;        // in residual; the rows of dst start again at its first after its last
  int64_t in_plane;           // of src, in elements
  int64_t src_branch;         // from a branch's source to the next one's, in elements; 0 where it is shared
  bool src_uint8, dst_float;  // else `compute`
  const void* src;
  const void* weight;
  const uint32_t* mask;
  const float* pruned_scale;
  const float* bias;
  const float* tap_shift;
  const float* slope;
  const void* residual;
  void* dst;
  float* workspace;

  explicit Conv(const ConvParams& p)
      : mode(p.mask == nullptr ? Mode::unmasked
             : p.src_shared    ? Mode::masked_shared
                               : Mode::masked_paired),
        images(static_cast<int>(mode == Mode::unmasked ? p.images * p.branches : p.images)),
        branches(mode == Mode::unmasked ? 1 : 2),
        in_h(static_cast<int>(p.in_h)),
        in_w(static_cast<int>(p.in_w)),
        in_c(static_cast<int>(p.in_c)),
        out_h(static_cast<int>(p.out_h)),
        out_w(static_cast<int>(p.out_w)),
        out_c(static_cast<int>(p.out_c)),
        by_out_h(out_h),
        by_out_w(out_w),
        kernel_h(static_cast<int>(p.kernel_h)),
        kernel_w(static_cast<int>(p.kernel_w)),
        stride_h(static_cast<int>(p.stride_h)),
        stride_w(static_cast<int>(p.stride_w)),
        pad_h(static_cast<int>(p.pad_h)),
        pad_w(static_cast<int>(p.pad_w)),
        dilation_h(static_cast<int>(p.dilation_h)),
        dilation_w(static_cast<int>(p.dilation_w)),
        groups(static_cast<int>(p.groups)),
        group_in_c(in_c / groups),
        group_out_c(out_c / groups),
        taps(kernel_h * kernel_w),
        depth(taps * group_in_c),
        steps(ceil_div(depth, k_step)),
        pixels(images * out_h * out_w),
        mask_words(static_cast<int>(p.mask_words)),
        slope_stride(static_cast<int>(p.slope_stride)),
        bias_branch(p.bias_shared ? 0 : out_c),
        residual_pixels(static_cast<int>(p.residual_shared ? p.pixels() : p.pixels() * p.branches)),
        in_plane(p.in_plane()),
        src_branch(p.src_shared ? 0 : p.images * in_plane),
        src_uint8(p.src_type == Type::uint8),
        dst_float(p.dst_type == Type::float32),
        src(p.src),
        weight(p.weight),
        mask(p.mask),
        pruned_scale(p.pruned_scale),
        bias(p.bias),
        tap_shift(p.tap_shift),
        slope(p.slope),
        residual(p.residual),
        dst(p.dst),
        workspace(p.workspace) {}

  // The floats of one segment's sums in the workspace, which are laid out like dst.
  __host__ __device__ int64_t partial_floats() const { return static_cast<int64_t>(branches) * pixels * out_c; }

  // Pixels of dst, numbers of one padded image, filters and a filter's weights are counted in 32 bits; offsets into
  // whole tensors in 64. With a mask there are two branches; without one a shared source has one result.
  static bool fits(const ConvParams& p) {
    const int64_t padded = (p.in_h + 2 * p.pad_h) * (p.in_w + 2 * p.pad_w) * p.in_c;
    const bool modes = p.mask == nullptr ? p.branches == 1 || !p.src_shared : p.branches == 2;
    constexpr int64_t most = INT32_MAX / 2;
    return modes && p.pixels() * p.branches < most && padded < most && p.depth() < most && p.out_c < most;
  }
};

template <class T>
__device__ void unpack_8(float (&values)[8], const uint4& words) {
  const uint32_t pairs[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    values[2 * i] = to_float(T{static_cast<uint16_t>(pairs[i])});
    values[2 * i + 1] = to_float(T{static_cast<uint16_t>(pairs[i] >> 16)});
  }
}

// Loads eight neighbouring channels as floats; those past `count` are 0. `vector`: there are eight, 16-byte aligned.
template <class T>
__device__ void load_8(float (&values)[8], const T* src, int count, bool vector) {
  if (vector) {
    unpack_8<T>(values, load_16<uint4>(src));
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) values[i] = i < count ? to_float(src[i]) : 0.f;
  }
}

__device__ inline void load_8(float (&values)[8], const float* src, int count, bool vector) {
  if (vector) {
    const float4 low = load_16<float4>(src), high = load_16<float4>(src + 4);
    values[0] = low.x, values[1] = low.y, values[2] = low.z, values[3] = low.w;
    values[4] = high.x, values[5] = high.y, values[6] = high.z, values[7] = high.w;
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) values[i] = i < count ? src[i] : 0.f;
  }
}

template <class T>
__device__ void store_8(T* dst, const float (&values)[8], int count, bool vector) {
  uint32_t pairs[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) pairs[i] = pack<T>(values[2 * i], values[2 * i + 1]);
  if (vector) {
    store_16(dst, uint4{pairs[0], pairs[1], pairs[2], pairs[3]});
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (i < count) dst[i] = T{static_cast<uint16_t>(pairs[i / 2] >> (i % 2 * 16))};
    }
  }
}

__device__ inline void store_8(float* dst, const float (&values)[8], int count, bool vector) {
  if (vector) {
    store_16(dst, float4{values[0], values[1], values[2], values[3]});
    store_16(dst + 4, float4{values[4], values[5], values[6], values[7]});
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (i < count) dst[i] = values[i];
    }
  }
}

}  // namespace prefiqs::cuda
