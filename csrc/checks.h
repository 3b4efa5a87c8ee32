// What the operators expect of their inputs, and the geometry that follows from them, for the CPU and for CUDA.
// prefiqs_ext/fake_ops.py says the same, in the same order and words, for the fake kernels; one table of bad calls,
// tests/bad_calls.py, is run through both.
//
// No sum or product here or in the kernels can overflow: every tensor and every padded image has at most `most_numbers`
// numbers, and steps are no longer than the padded image. Wrong geometry is refused in the words of torch's conv2d.
#pragma once
#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "conv_params.h"
#include "expect.h"

namespace prefiqs {

// `out` must have the layout that the kernels write, and no memory in common with the inputs, which are still read.
inline void check_out(const char* op,
                      const Tensor& out,
                      ScalarType dtype,
                      const std::vector<int64_t>& shape,
                      const Tensor& src,
                      std::initializer_list<std::optional<Tensor>> others) {
  expect_tensor(op, "out", out, dtype, shape, src);
  bool dense = true;
  int64_t step = 1;
  for (const int64_t d : {1, 3, 2, 0}) {
    dense = dense && (out.size(d) == 1 || out.stride(d) == step);
    step *= out.size(d);
  }
  expect(dense, op, "expected out in channels_last layout without gaps");
  bool apart = !share_memory(out, src);
  for (const auto& other : others) apart = apart && !(other && share_memory(out, *other));
  expect(apart, op,
         "expected out apart from all inputs: some elements of the input tensor and the written-to tensor refer to a "
         "single memory location");
}

inline void expect_two(const char* op, const char* name, const std::vector<int64_t>& values) {
  expect(values.size() == 2, op, "expected ", name,
         " to be a single integer value or a list of 2 values to match the convolution dimensions, but got ", name, "=",
         list_text(values));
}

inline int64_t mask_words(int64_t depth) { return (depth + 31) / 32; }

inline void check_weight_companions(const char* op,
                                    const Tensor& src,
                                    const Tensor& weight,
                                    int64_t depth,
                                    const std::optional<Tensor>& mask,
                                    const std::optional<Tensor>& pruned_scale,
                                    const std::optional<Tensor>& bias) {
  expect_place(op, "weight", weight, src);
  if (mask) expect_tensor(op, "mask", *mask, ScalarType::Int, {weight.size(0), mask_words(depth)}, src);
  if (pruned_scale) {
    expect(mask.has_value(), op, "expected a mask beside pruned_scale, got none");
    expect_tensor(op, "pruned_scale", *pruned_scale, ScalarType::Float, {weight.size(0)}, src);
  }
  if (bias) {
    Shape shape{weight.size(0)};
    if (mask && bias->dim() == 2) shape.insert(shape.begin(), 2);
    expect_tensor(op, "bias", *bias, ScalarType::Float, shape, src);
  }
}

inline std::vector<int64_t> conv_dst_shape(const ConvGeometry& g) {
  return {g.images * g.branches, g.out_c, g.out_h, g.out_w};
}

inline ConvGeometry check_conv2d(const Tensor& src,
                                 const Tensor& weight,
                                 const std::optional<Tensor>& mask,
                                 const std::optional<Tensor>& pruned_scale,
                                 const std::optional<Tensor>& bias,
                                 const std::optional<Tensor>& tap_shift,
                                 const std::optional<Tensor>& slope,
                                 const std::optional<Tensor>& residual,
                                 const std::vector<int64_t>& stride,
                                 const std::vector<int64_t>& padding,
                                 const std::vector<int64_t>& dilation,
                                 int64_t groups,
                                 bool paired) {
  const char* op = "dual_conv2d";
  expect(src.dim() == 4, op, "expected src of shape [N, C, H, W], got ", shape_text(src));
  expect(is_float(src, src) || src.scalar_type() == ScalarType::Byte, op, "expected src of dtype ", float_names(src),
         " or uint8, got ", dtype_name(src));
  expect(is_float(src, src) || !paired, op, "expected a paired src of dtype ", float_names(src), ", got uint8");
  expect(!paired || src.size(0) % 2 == 0, op, "expected an even number of rows in a paired src, got ", src.size(0));
  expect(weight.dim() == 4, op, "expected weight of shape [Co, C/groups, kh, kw], got ", shape_text(weight));
  expect_float(op, "weight", weight, src);
  expect_one_format(op, src, weight);
  for (int64_t d = 0; d < 4; ++d) {
    expect(weight.size(d) > 0, op, "expected weight without empty dimensions, got ", shape_text(weight));
  }
  expect_countable(op, "src", src.sizes());
  expect_stored(op, "src", src);
  expect_countable(op, "weight", weight.sizes());
  expect_two(op, "stride", stride);
  expect_two(op, "padding", padding);
  expect_two(op, "dilation", dilation);
  for (size_t d = 0; d < 2; ++d) {
    expect(stride[d] >= 1, op, "non-positive stride is not supported: expected 1 or more, got ", stride[d]);
    expect(padding[d] >= 0, op, "negative padding is not supported: expected 0 or more, got ", padding[d]);
    expect(padding[d] <= most_numbers, op, "Given padding=", padding[d], " at dimension ", d,
           ", expected padding to be at most ", most_numbers);
    expect(dilation[d] >= 1, op, "non-positive dilation is not supported: expected 1 or more, got ", dilation[d]);
  }
  expect(groups >= 1, op, "non-positive groups is not supported: expected 1 or more, got ", groups);
  expect(weight.size(0) % groups == 0, op, "Given groups=", groups, ", expected weight to be divisible by ", groups,
         " at dimension 0, but got weight of size ", shape_text(weight), " instead");
  expect(src.size(1) == weight.size(1) * groups, op, "Given groups=", groups, ", weight of size ", shape_text(weight),
         ", expected src", shape_text(src), " to have ", weight.size(1) * groups, " channels, but got ", src.size(1),
         " channels instead");
  expect(src.size(0) == 0 || (src.size(2) > 0 && src.size(3) > 0), op,
         "Only zero batch inputs are supported, but got input shape: ", shape_text(src));
  const int64_t channels = weight.size(0);
  check_weight_companions(op, src, weight, weight.size(1) * weight.size(2) * weight.size(3), mask, pruned_scale, bias);
  if (tap_shift) {
    expect_tensor(op, "tap_shift", *tap_shift, ScalarType::Float,
                  {mask ? 2 : 1, channels, weight.size(2), weight.size(3)}, src);
  }
  if (slope) {
    expect_dtype(op, "slope", *slope, ScalarType::Float);
    expect(slope->dim() == 1 && (slope->size(0) == 1 || slope->size(0) == channels), op,
           "expected slope of shape [1] or [", channels, "], got ", shape_text(*slope));
    expect_place(op, "slope", *slope, src);
  }
  const int64_t padded[2] = {src.size(2) + 2 * padding[0], src.size(3) + 2 * padding[1]};
  expect(countable(std::array{src.size(1), padded[0], padded[1]}), op, "expected a padded image of at most ",
         most_numbers, " numbers, got image ", shape_text(src), " and padding ", list_text(padding));
  int64_t out[2];
  for (size_t d = 0; d < 2; ++d) {
    const int64_t last_tap = weight.size(static_cast<int64_t>(d) + 2) - 1;
    expect(last_tap == 0 ? padded[d] > 0 : dilation[d] <= (padded[d] - 1) / last_tap, op,
           "Calculated padded input size per channel: (", padded[0], " x ", padded[1], "). Kernel size: (",
           weight.size(2), " x ", weight.size(3), "), dilation: (", dilation[0], " x ", dilation[1],
           "). Kernel size can't be greater than actual input size");
    out[d] = (padded[d] - 1 - dilation[d] * last_tap) / stride[d] + 1;
  }
  ConvGeometry g{};
  g.images = paired ? src.size(0) / 2 : src.size(0);
  g.branches = paired || mask ? 2 : 1;
  g.in_h = src.size(2), g.in_w = src.size(3), g.in_c = src.size(1);
  g.out_h = out[0], g.out_w = out[1], g.out_c = channels;
  g.kernel_h = weight.size(2), g.kernel_w = weight.size(3);
  // All steps beyond the padded image are alike.
  g.stride_h = std::min(stride[0], padded[0]), g.stride_w = std::min(stride[1], padded[1]);
  g.pad_h = padding[0], g.pad_w = padding[1];
  g.dilation_h = std::min(dilation[0], padded[0]), g.dilation_w = std::min(dilation[1], padded[1]);
  g.groups = groups;
  g.src_shared = !paired;
  g.bias_shared = !bias || bias->dim() == 1;
  g.mask_words = mask_words(g.depth());
  g.slope_stride = slope && slope->size(0) > 1 ? 1 : 0;
  expect_countable(op, "a result", conv_dst_shape(g));
  if (residual) {
    g.residual_shared = residual->dim() == 4 && residual->size(0) == g.images;
    const int64_t rows = g.residual_shared ? g.images : g.images * g.branches;
    expect_tensor(op, "residual", *residual, result_dtype(src, weight), {rows, g.out_c, g.out_h, g.out_w}, src);
  }
  return g;
}

inline std::vector<int64_t> linear_dst_shape(const Tensor& src, const Tensor& weight, const ConvGeometry& g) {
  std::vector<int64_t> shape(src.sizes().begin(), src.sizes().end());
  shape[0] = g.src_shared ? shape[0] * g.branches : shape[0];
  shape.back() = weight.size(0);
  return shape;
}

// A linear layer is a 1 x 1 convolution of images of one pixel, the rows of src.
inline ConvGeometry check_linear(const Tensor& src,
                                 const Tensor& weight,
                                 const std::optional<Tensor>& mask,
                                 const std::optional<Tensor>& pruned_scale,
                                 const std::optional<Tensor>& bias,
                                 bool paired) {
  const char* op = "dual_linear";
  expect(src.dim() >= 2, op, "expected src of shape [N, ..., I], got ", shape_text(src));
  expect_float(op, "src", src, src);
  expect(!paired || src.size(0) % 2 == 0, op, "expected an even number of rows in a paired src, got ", src.size(0));
  expect(weight.dim() == 2, op, "expected weight of shape [O, I], got ", shape_text(weight));
  expect_float(op, "weight", weight, src);
  expect_one_format(op, src, weight);
  expect(weight.size(0) > 0 && weight.size(1) > 0, op, "expected weight without empty dimensions, got ",
         shape_text(weight));
  expect(src.size(src.dim() - 1) == weight.size(1), op, "expected src with ", weight.size(1),
         " features in its last dimension, got ", src.size(src.dim() - 1));
  expect_countable(op, "src", src.sizes());
  expect_stored(op, "src", src);
  expect_countable(op, "weight", weight.sizes());
  check_weight_companions(op, src, weight, weight.size(1), mask, pruned_scale, bias);
  ConvGeometry g{};
  g.images = src.numel() / weight.size(1) / (paired ? 2 : 1);
  g.branches = paired || mask ? 2 : 1;
  g.in_h = g.in_w = g.out_h = g.out_w = 1;
  g.in_c = weight.size(1), g.out_c = weight.size(0);
  g.kernel_h = g.kernel_w = g.stride_h = g.stride_w = g.dilation_h = g.dilation_w = g.groups = 1;
  g.src_shared = !paired;
  g.bias_shared = !bias || bias->dim() == 1;
  g.mask_words = mask_words(g.depth());
  expect_countable(op, "a result", linear_dst_shape(src, weight, g));
  return g;
}

inline void check_pair(const Tensor& pair) {
  const char* op = "embedding_distance";
  expect(pair.dim() == 2, op, "expected pair of shape [2N, d], got ", shape_text(pair));
  expect_float(op, "pair", pair, pair);
  expect(pair.size(0) % 2 == 0, op, "expected an even number of rows in pair, got ", pair.size(0));
  expect(pair.size(1) > 0, op, "expected pair with at least one feature, got ", shape_text(pair));
  expect_countable(op, "pair", pair.sizes());
  expect_stored(op, "pair", pair);
}

inline void check_norm(const Tensor& src, bool paired) {
  const char* op = "dense_norm";
  expect(src.dim() >= 1, op, "expected src of shape [N, ...], got ", shape_text(src));
  expect_float(op, "src", src, src);
  expect(!paired || src.size(0) % 2 == 0, op, "expected an even number of rows in a paired src, got ", src.size(0));
  expect_countable(op, "src", src.sizes());
  expect_stored(op, "src", src);
}

// Whether each row lies in memory without gaps, in some order of its dimensions. Gaps between the rows do not matter.
inline bool rows_without_gaps(const Tensor& t) {
  std::vector<int64_t> dims;
  for (int64_t d = 1; d < t.dim(); ++d) {
    if (t.size(d) != 1) dims.push_back(d);
  }
  std::sort(dims.begin(), dims.end(), [&](int64_t a, int64_t b) { return t.stride(a) < t.stride(b); });
  int64_t step = 1;
  for (const int64_t d : dims) {
    if (t.stride(d) != step) return false;
    step *= t.size(d);
  }
  return true;
}

}  // namespace prefiqs
