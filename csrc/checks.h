// What the operators expect of their inputs, and the geometry that follows from them, shared by the CPU and CUDA glue.
// prefiqs_ext/ops.py says the same, in the same order and words, for the fake kernels; one table of bad calls in
// tests/test_ops_contract.py holds the two together.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <cstdint>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "conv_params.h"

namespace prefiqs {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline std::string shape_text(const Tensor& t) {
  std::ostringstream text;
  text << '[';
  for (int64_t d = 0; d < t.dim(); ++d) text << (d == 0 ? "" : ", ") << t.size(d);
  text << ']';
  return text.str();
}

template <class... Parts>
void expect(bool condition, const char* op, const Parts&... parts) {
  if (condition) return;
  std::ostringstream text;
  text << "prefiqs_ext::" << op << ": ";
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

inline void expect_shape(const char* op, const char* name, const Tensor& t, const std::vector<int64_t>& shape) {
  bool same = t.dim() == static_cast<int64_t>(shape.size());
  for (int64_t d = 0; same && d < t.dim(); ++d) same = t.size(d) == shape[static_cast<size_t>(d)];
  if (same) return;
  std::ostringstream wanted;
  for (size_t d = 0; d < shape.size(); ++d) wanted << (d == 0 ? "" : ", ") << shape[d];
  expect(false, op, "expected ", name, " of shape [", wanted.str(), "], got ", shape_text(t));
}

inline const char* dtype_name(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Half:
      return "float16";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Int:
      return "int32";
    default:
      return torch::headeronly::toString(dtype);
  }
}

inline void expect_dtype(const char* op, const char* name, const Tensor& t, ScalarType dtype) {
  expect(t.scalar_type() == dtype, op, "expected ", name, " of dtype ", dtype_name(dtype), ", got ",
         torch::headeronly::toString(t.scalar_type()));
}

// CPU kernels compute in float32. CUDA kernels multiply in float16 or bfloat16; float32 is converted on the way in.
inline bool is_float(const Tensor& t, const Tensor& src) {
  const ScalarType dtype = t.scalar_type();
  const bool half = dtype == ScalarType::Half || dtype == ScalarType::BFloat16;
  return dtype == ScalarType::Float || (half && src.is_cuda());
}

inline const char* float_names(const Tensor& src) {
  return src.is_cuda() ? "float32 or float16 or bfloat16" : "float32";
}

inline void expect_float(const char* op, const char* name, const Tensor& t, const Tensor& src) {
  expect(is_float(t, src), op, "expected ", name, " of dtype ", float_names(src), ", got ",
         torch::headeronly::toString(t.scalar_type()));
}

// Two sixteen-bit formats in one call would leave open which one multiplies.
inline void expect_one_format(const char* op, const Tensor& src, const Tensor& weight) {
  const ScalarType dtype = src.scalar_type();
  expect(dtype == ScalarType::Byte || dtype == ScalarType::Float || dtype == weight.scalar_type(), op,
         "expected src of dtype float32 or of weight's, ", dtype_name(weight.scalar_type()), ", got ",
         torch::headeronly::toString(dtype));
}

inline ScalarType result_dtype(const Tensor& src, const Tensor& weight) {
  return src.scalar_type() == ScalarType::Byte ? weight.scalar_type() : src.scalar_type();
}

inline void expect_device(const char* op, const char* name, const Tensor& t, const Tensor& src) {
  expect(t.device() == src.device(), op, "expected ", name, " on the device of src");
}

// A result is written in place only into a tensor of the layout that the kernels write.
inline void check_out(
    const char* op, const Tensor& out, const Tensor& src, ScalarType dtype, const std::vector<int64_t>& shape) {
  expect_dtype(op, "out", out, dtype);
  expect_shape(op, "out", out, shape);
  expect_device(op, "out", out, src);
  bool dense = true;
  int64_t step = 1;
  for (const int64_t d : {1, 3, 2, 0}) {
    dense = dense && (out.size(d) == 1 || out.stride(d) == step);
    step *= out.size(d);
  }
  expect(dense, op, "expected out in channels_last layout without gaps");
}

inline int64_t mask_words(int64_t depth) { return (depth + 31) / 32; }

inline void check_weight_companions(const char* op,
                                    const Tensor& src,
                                    const Tensor& weight,
                                    int64_t depth,
                                    const std::optional<Tensor>& mask,
                                    const std::optional<Tensor>& bias) {
  expect_device(op, "weight", weight, src);
  if (mask) {
    expect_dtype(op, "mask", *mask, ScalarType::Int);
    expect_shape(op, "mask", *mask, {weight.size(0), mask_words(depth)});
    expect_device(op, "mask", *mask, src);
  }
  if (bias) {
    expect_dtype(op, "bias", *bias, ScalarType::Float);
    expect_shape(op, "bias", *bias, {weight.size(0)});
    expect_device(op, "bias", *bias, src);
  }
}

inline ConvGeometry check_conv2d(const Tensor& src,
                                 const Tensor& weight,
                                 const std::optional<Tensor>& mask,
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
         " or uint8, got ", torch::headeronly::toString(src.scalar_type()));
  expect(is_float(src, src) || !paired, op, "expected a paired src of dtype ", float_names(src), ", got uint8");
  expect(!paired || src.size(0) % 2 == 0, op, "expected an even number of rows in a paired src, got ", src.size(0));
  expect(weight.dim() == 4, op, "expected weight of shape [Co, C/groups, kh, kw], got ", shape_text(weight));
  expect_float(op, "weight", weight, src);
  expect_one_format(op, src, weight);
  for (int64_t d = 0; d < 4; ++d) {
    expect(weight.size(d) > 0, op, "expected weight without empty dimensions, got ", shape_text(weight));
  }
  for (size_t d = 0; d < 2; ++d) {
    expect(stride[d] >= 1, op, "expected stride of 1 or more, got ", stride[d]);
    expect(padding[d] >= 0, op, "expected padding of 0 or more, got ", padding[d]);
    expect(dilation[d] >= 1, op, "expected dilation of 1 or more, got ", dilation[d]);
  }
  expect(groups >= 1 && weight.size(0) % groups == 0, op, "expected groups that divide the ", weight.size(0),
         " output channels, got ", groups);
  expect(src.size(1) == weight.size(1) * groups, op, "expected src with ", weight.size(1) * groups,
         " channels (weight's C/groups x groups), got ", src.size(1));
  const int64_t channels = weight.size(0);
  check_weight_companions(op, src, weight, weight.size(1) * weight.size(2) * weight.size(3), mask, bias);
  if (tap_shift) {
    expect_dtype(op, "tap_shift", *tap_shift, ScalarType::Float);
    expect_shape(op, "tap_shift", *tap_shift, {mask ? 2 : 1, channels, weight.size(2), weight.size(3)});
    expect_device(op, "tap_shift", *tap_shift, src);
  }
  if (slope) {
    expect_dtype(op, "slope", *slope, ScalarType::Float);
    expect(slope->dim() == 1 && (slope->size(0) == 1 || slope->size(0) == channels), op,
           "expected slope of shape [1] or [", channels, "], got ", shape_text(*slope));
    expect_device(op, "slope", *slope, src);
  }
  int64_t out[2];
  for (size_t d = 0; d < 2; ++d) {
    const int64_t axis = static_cast<int64_t>(d) + 2;
    const int64_t span = src.size(axis) + 2 * padding[d] - dilation[d] * (weight.size(axis) - 1) - 1;
    expect(span >= 0, op, "expected a padded image that holds the kernel, got image ", shape_text(src), " and kernel ",
           shape_text(weight));
    out[d] = span / stride[d] + 1;
  }
  ConvGeometry g{};
  g.images = paired ? src.size(0) / 2 : src.size(0);
  g.branches = paired || mask ? 2 : 1;
  g.in_h = src.size(2), g.in_w = src.size(3), g.in_c = src.size(1);
  g.out_h = out[0], g.out_w = out[1], g.out_c = channels;
  g.kernel_h = weight.size(2), g.kernel_w = weight.size(3);
  g.stride_h = stride[0], g.stride_w = stride[1];
  g.pad_h = padding[0], g.pad_w = padding[1];
  g.dilation_h = dilation[0], g.dilation_w = dilation[1];
  g.groups = groups;
  g.src_shared = !paired;
  g.mask_words = mask_words(g.depth());
  g.slope_stride = slope && slope->size(0) > 1 ? 1 : 0;
  if (residual) {
    expect_dtype(op, "residual", *residual, result_dtype(src, weight));
    g.residual_shared = residual->dim() == 4 && residual->size(0) == g.images;
    const int64_t rows = g.residual_shared ? g.images : g.images * g.branches;
    expect_shape(op, "residual", *residual, {rows, g.out_c, g.out_h, g.out_w});
    expect_device(op, "residual", *residual, src);
  }
  return g;
}

inline std::vector<int64_t> conv_dst_shape(const ConvGeometry& g) {
  return {g.images * g.branches, g.out_c, g.out_h, g.out_w};
}

// A linear layer is a 1 x 1 convolution of images of one pixel, the rows of src.
inline ConvGeometry check_linear(const Tensor& src,
                                 const Tensor& weight,
                                 const std::optional<Tensor>& mask,
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
  check_weight_companions(op, src, weight, weight.size(1), mask, bias);
  ConvGeometry g{};
  g.images = src.numel() / weight.size(1) / (paired ? 2 : 1);
  g.branches = paired || mask ? 2 : 1;
  g.in_h = g.in_w = g.out_h = g.out_w = 1;
  g.in_c = weight.size(1), g.out_c = weight.size(0);
  g.kernel_h = g.kernel_w = g.stride_h = g.stride_w = g.dilation_h = g.dilation_w = g.groups = 1;
  g.src_shared = !paired;
  g.mask_words = mask_words(g.depth());
  return g;
}

inline std::vector<int64_t> linear_dst_shape(const Tensor& src, const Tensor& weight, const ConvGeometry& g) {
  std::vector<int64_t> shape(src.sizes().begin(), src.sizes().end());
  shape[0] = g.src_shared ? shape[0] * g.branches : shape[0];
  shape.back() = weight.size(0);
  return shape;
}

inline void check_pair(const Tensor& pair) {
  const char* op = "embedding_distance";
  expect(pair.dim() == 2, op, "expected pair of shape [2N, d], got ", shape_text(pair));
  expect_float(op, "pair", pair, pair);
  expect(pair.size(0) % 2 == 0, op, "expected an even number of rows in pair, got ", pair.size(0));
  expect(pair.size(1) > 0, op, "expected pair with at least one feature, got ", shape_text(pair));
}

}  // namespace prefiqs
