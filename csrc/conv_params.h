// One convolution of a pair as plain numbers and pointers, which every kernel takes. No torch header here.
#pragma once
#include <cstdint>

#include "bfloat16.h"

namespace prefiqs {

// What a tensor's numbers are.
enum class Format { float32, bfloat16 };

// Layouts: src [images, in_h, in_w, in_c], dst and residual [images, out_h, out_w, out_c] (NHWC), weight
// [out_c, kernel_h, kernel_w, in_c / groups], mask [out_c, mask_words] with bit k = (r * kernel_w + s) * (in_c /
// groups) + c. Branch 0 uses the weights as they are; branch 1 uses the masked weights, or the same if mask is null.
// The second half of a pair follows the first, so the rows of branch 1 start `images` images later, unless both
// branches share the tensor.
//
// checks.h makes sure that only `images` may be 0, that the sizes of a tensor, or of the padded image, multiply to at
// most 2^48, and that steps are no longer than the padded image.
struct ConvGeometry {
  int64_t images;    // per branch
  int64_t branches;  // 1 or 2
  int64_t in_h, in_w, in_c;
  int64_t out_h, out_w, out_c;
  int64_t kernel_h, kernel_w;
  int64_t stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  int64_t groups;

  bool src_shared;
  bool bias_shared;
  bool residual_shared;
  int64_t mask_words;    // of a filter
  int64_t slope_stride;  // 0 where all channels share one slope

  int64_t group_in_c() const { return in_c / groups; }
  int64_t group_out_c() const { return out_c / groups; }
  int64_t taps() const { return kernel_h * kernel_w; }
  int64_t depth() const { return taps() * group_in_c(); }    // K of the matrix product
  int64_t pixels() const { return images * out_h * out_w; }  // of one branch
  int64_t in_plane() const { return in_h * in_w * in_c; }
};

// Formats: all float32; or weights in bfloat16, and src and dst in either format. Sums are float32 in any case.
struct ConvParams : ConvGeometry {
  Format src_format, weight_format, dst_format;  // the last is that of residual, too
  const void* src;
  const void* weight;
  const uint32_t* mask;  // null: every branch uses the weights as they are

  const float* pruned_scale;  // of each channel of branch 1, which its sums are multiplied by; null: by 1

  // What is added to an output pixel, bias and tap shifts (border_bias.h):
  // bias[branch][row_class[oh] * col_classes + col_class[ow]][out_c].
  const float* bias;
  const int32_t* row_class;
  const int32_t* col_class;
  int64_t col_classes;
  int64_t bias_branch_stride;  // in floats; 0 when both branches share the table

  const float* slope;    // null: no activation; else PReLU with slope[c * slope_stride]
  const void* residual;  // null: none
  void* dst;

  // These take the type that the format stands for.
  template <class Number>
  const Number* branch_src(int64_t branch) const {
    return static_cast<const Number*>(src) + (src_shared ? 0 : branch * images * in_plane());
  }
  template <class Number>
  const Number* filter(int64_t channel) const {
    return static_cast<const Number*>(weight) + channel * depth();
  }
  template <class Number>
  Number* branch_dst(int64_t branch) const {
    return static_cast<Number*>(dst) + branch * pixels() * out_c;
  }
  template <class Number>
  const Number* branch_residual(int64_t branch) const {
    return static_cast<const Number*>(residual) + (residual_shared ? 0 : branch * pixels() * out_c);
  }
  // Where a number lies, whatever the format; to fetch it ahead.
  const void* dst_address(int64_t branch, int64_t index) const {
    return static_cast<const char*>(dst) + (branch * pixels() * out_c + index) * dst_size();
  }
  const void* residual_address(int64_t branch, int64_t index) const {
    return static_cast<const char*>(residual) +
           ((residual_shared ? 0 : branch * pixels() * out_c) + index) * dst_size();
  }
  int64_t dst_size() const { return dst_format == Format::float32 ? 4 : 2; }
  const float* branch_bias(int64_t branch) const { return bias + branch * bias_branch_stride; }
};

// Calls `run.template operator()<Src, Weight>()` with the types of src and weight.
template <class Run>
void with_formats(const ConvParams& p, const Run& run) {
  if (p.weight_format == Format::float32) {
    run.template operator()<float, float>();
  } else if (p.src_format == Format::float32) {
    run.template operator()<float, BFloat16>();
  } else {
    run.template operator()<BFloat16, BFloat16>();
  }
}

}  // namespace prefiqs
