// The operators on CPU tensors: checks, layouts, threads. The arithmetic is in the kernel files.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <cmath>
#include <numeric>

#include "border_bias.h"
#include "checks.h"
#include "cpu/dense_norm.h"
#include "cpu/distance.h"
#include "cpu/kernels.h"

namespace prefiqs {
namespace {

using torch::headeronly::MemoryFormat;
using OptionalTensor = std::optional<Tensor>;

Tensor empty(const char* op,
             const std::vector<int64_t>& shape,
             ScalarType dtype = ScalarType::Float,
             MemoryFormat format = MemoryFormat::Contiguous) {
  return expect_memory(op, shape, dtype, "cpu", [&] {
    return torch::stable::empty(shape, dtype, std::nullopt, std::nullopt, std::nullopt, format);
  });
}

// A tensor as the kernels want it: float32 or bfloat16, without gaps in `format`. Most tensors are so already.
Tensor dense(const char* op, const Tensor& t, MemoryFormat format = MemoryFormat::Contiguous) {
  return expect_memory(op, t.sizes(), ScalarType::Float, "cpu", [&] {
    // An 8-bit image is a few kilobytes: widening it costs nothing beside the layer it feeds.
    return torch::stable::contiguous(t.scalar_type() == ScalarType::Byte ? torch::stable::to(t, ScalarType::Float) : t,
                                     format);
  });
}

Format format_of(const Tensor& t) {
  return t.scalar_type() == ScalarType::BFloat16 ? Format::bfloat16 : Format::float32;
}

const float* data_or_null(const OptionalTensor& t) { return t ? t->const_data_ptr<float>() : nullptr; }

OptionalTensor contiguous(const OptionalTensor& t) {
  return t ? OptionalTensor(torch::stable::contiguous(*t)) : std::nullopt;
}

void run_conv(const ConvParams& params) {
  const ConvKernel& kernel = choose_conv_kernel(params);
  torch::stable::parallel_for(0, kernel.work_items(params), 1,
                              [&](int64_t begin, int64_t end) { kernel.run(params, begin, end); });
}

// Writes into `out` if it is given, else into a new tensor.
Tensor dual_conv2d_into(OptionalTensor out,
                        const Tensor& src,
                        const Tensor& weight,
                        const OptionalTensor& mask,
                        const OptionalTensor& pruned_scale,
                        const OptionalTensor& bias,
                        const OptionalTensor& tap_shift,
                        const OptionalTensor& slope,
                        const OptionalTensor& residual,
                        const std::vector<int64_t>& stride,
                        const std::vector<int64_t>& padding,
                        const std::vector<int64_t>& dilation,
                        int64_t groups,
                        bool paired) {
  const ConvGeometry geometry = check_conv2d(src, weight, mask, pruned_scale, bias, tap_shift, slope, residual, stride,
                                             padding, dilation, groups, paired);
  const std::vector<int64_t> dst_shape = conv_dst_shape(geometry);
  const ScalarType dtype = result_dtype(src, weight);
  if (out) {
    check_out("dual_conv2d", *out, dtype, dst_shape, src,
              {weight, mask, pruned_scale, bias, tap_shift, slope, residual});
  }
  Tensor dst = out ? *out : empty("dual_conv2d", dst_shape, dtype, MemoryFormat::ChannelsLast);
  if (dst.numel() == 0) return dst;

  const auto channels_last = [](const Tensor& t) { return dense("dual_conv2d", t, MemoryFormat::ChannelsLast); };
  const Tensor src_nhwc = channels_last(src), weight_nhwc = channels_last(weight);
  OptionalTensor residual_nhwc = residual;
  if (residual) residual_nhwc = channels_last(*residual);
  const OptionalTensor mask_rows = contiguous(mask), scales = contiguous(pruned_scale), biases = contiguous(bias),
                       shifts = contiguous(tap_shift), slopes = contiguous(slope);

  ConvParams p{};
  static_cast<ConvGeometry&>(p) = geometry;
  const TapRanges rows(p.in_h, p.out_h, tap_shift ? p.kernel_h : 0, p.stride_h, p.pad_h, p.dilation_h);
  const TapRanges cols(p.in_w, p.out_w, tap_shift ? p.kernel_w : 0, p.stride_w, p.pad_w, p.dilation_w);
  const int64_t tables = mask && (tap_shift || !p.bias_shared) ? 2 : 1;
  const std::vector<float> bias_table =
      bias_by_class(rows, cols, tables, p.out_c, p.kernel_h, p.kernel_w, data_or_null(biases),
                    p.bias_shared ? 0 : p.out_c, data_or_null(shifts));

  p.src_format = format_of(src_nhwc), p.weight_format = format_of(weight_nhwc), p.dst_format = format_of(dst);
  p.src = src_nhwc.const_data_ptr();
  p.weight = weight_nhwc.const_data_ptr();
  p.mask = mask_rows ? reinterpret_cast<const uint32_t*>(mask_rows->const_data_ptr<int32_t>()) : nullptr;
  p.pruned_scale = data_or_null(scales);
  p.bias = bias_table.data();
  p.row_class = rows.position_class.data();
  p.col_class = cols.position_class.data();
  p.col_classes = cols.classes();
  p.bias_branch_stride = tables == 2 ? rows.classes() * cols.classes() * p.out_c : 0;
  p.slope = data_or_null(slopes);
  p.residual = residual_nhwc ? residual_nhwc->const_data_ptr() : nullptr;
  p.dst = dst.mutable_data_ptr();
  run_conv(p);
  return dst;
}

Tensor dual_conv2d(const Tensor& src,
                   const Tensor& weight,
                   const OptionalTensor& mask,
                   const OptionalTensor& pruned_scale,
                   const OptionalTensor& bias,
                   const OptionalTensor& tap_shift,
                   const OptionalTensor& slope,
                   const OptionalTensor& residual,
                   std::vector<int64_t> stride,
                   std::vector<int64_t> padding,
                   std::vector<int64_t> dilation,
                   int64_t groups,
                   bool paired) {
  return dual_conv2d_into(std::nullopt, src, weight, mask, pruned_scale, bias, tap_shift, slope, residual, stride,
                          padding, dilation, groups, paired);
}

void dual_conv2d_out(const Tensor& src,
                     const Tensor& weight,
                     const OptionalTensor& mask,
                     const OptionalTensor& pruned_scale,
                     const OptionalTensor& bias,
                     const OptionalTensor& tap_shift,
                     const OptionalTensor& slope,
                     const OptionalTensor& residual,
                     std::vector<int64_t> stride,
                     std::vector<int64_t> padding,
                     std::vector<int64_t> dilation,
                     int64_t groups,
                     bool paired,
                     const Tensor& out) {
  dual_conv2d_into(out, src, weight, mask, pruned_scale, bias, tap_shift, slope, residual, stride, padding, dilation,
                   groups, paired);
}

Tensor dual_linear(const Tensor& src,
                   const Tensor& weight,
                   const OptionalTensor& mask,
                   const OptionalTensor& pruned_scale,
                   const OptionalTensor& bias,
                   bool paired) {
  const ConvGeometry geometry = check_linear(src, weight, mask, pruned_scale, bias, paired);
  Tensor dst = empty("dual_linear", linear_dst_shape(src, weight, geometry), result_dtype(src, weight));
  if (dst.numel() == 0) return dst;

  const Tensor src_rows = dense("dual_linear", src), weight_rows = dense("dual_linear", weight);
  const OptionalTensor mask_rows = contiguous(mask), scales = contiguous(pruned_scale);
  const TapRanges one(1, 1, 0, 1, 0, 1);
  const OptionalTensor biases = contiguous(bias);
  const int64_t tables = geometry.bias_shared ? 1 : 2;
  const std::vector<float> bias_table =
      bias_by_class(one, one, tables, geometry.out_c, 1, 1, data_or_null(biases), geometry.out_c, nullptr);

  ConvParams p{};
  static_cast<ConvGeometry&>(p) = geometry;
  p.src_format = format_of(src_rows), p.weight_format = format_of(weight_rows), p.dst_format = format_of(dst);
  p.src = src_rows.const_data_ptr();
  p.weight = weight_rows.const_data_ptr();
  p.mask = mask_rows ? reinterpret_cast<const uint32_t*>(mask_rows->const_data_ptr<int32_t>()) : nullptr;
  p.pruned_scale = data_or_null(scales);
  p.bias = bias_table.data();
  p.row_class = one.position_class.data();
  p.col_class = one.position_class.data();
  p.col_classes = 1;
  p.bias_branch_stride = tables == 2 ? p.out_c : 0;
  p.dst = dst.mutable_data_ptr();
  run_conv(p);
  return dst;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> embedding_distance(const Tensor& pair) {
  check_pair(pair);
  const int64_t rows = pair.size(0) / 2, features = pair.size(1);
  const char* op = "embedding_distance";
  const Tensor contiguous_pair = expect_memory(op, pair.sizes(), ScalarType::Float, "cpu", [&] {
    return torch::stable::contiguous(torch::stable::to(pair, ScalarType::Float));
  });
  Tensor distance = empty(op, {rows}), norm = empty(op, {rows});
  Tensor embedding = empty(op, {rows, features}), pruned_embedding = empty(op, {rows, features});
  const DistanceParams p{
      rows,
      features,
      contiguous_pair.const_data_ptr<float>(),
      distance.mutable_data_ptr<float>(),
      embedding.mutable_data_ptr<float>(),
      pruned_embedding.mutable_data_ptr<float>(),
      norm.mutable_data_ptr<float>(),
  };
  torch::stable::parallel_for(0, rows, 16, [&](int64_t begin, int64_t end) { distance_rows(p, begin, end); });
  return {distance, embedding, pruned_embedding, norm};
}

Tensor dense_norm(const Tensor& src, bool paired) {
  check_norm(src, paired);
  const char* op = "dense_norm";
  const int64_t rows = paired ? src.size(0) / 2 : src.size(0);
  Tensor norm = empty(op, {rows});
  if (rows == 0) return norm;
  const Tensor taken = rows_without_gaps(src) ? src : dense(op, src);
  const int64_t features = taken.numel() / taken.size(0), blocks = (features + norm_block - 1) / norm_block;
  std::vector<double> sums(static_cast<size_t>(rows * blocks));
  torch::stable::parallel_for(0, rows * blocks, 16, [&](int64_t begin, int64_t end) {
    if (format_of(taken) == Format::float32) {
      square_blocks(taken.const_data_ptr<float>(), taken.stride(0), features, sums.data(), begin, end);
    } else {
      const auto* numbers = static_cast<const BFloat16*>(taken.const_data_ptr());
      square_blocks(numbers, taken.stride(0), features, sums.data(), begin, end);
    }
  });
  for (int64_t row = 0; row < rows; ++row) {
    const double* first = sums.data() + row * blocks;
    norm.mutable_data_ptr<float>()[row] = static_cast<float>(std::sqrt(std::accumulate(first, first + blocks, 0.0)));
  }
  return norm;
}

}  // namespace
}  // namespace prefiqs

STABLE_TORCH_LIBRARY_IMPL(prefiqs_ext, CPU, m) {
  m.impl("dual_conv2d", TORCH_BOX(&prefiqs::dual_conv2d));
  m.impl("dual_conv2d.out", TORCH_BOX(&prefiqs::dual_conv2d_out));
  m.impl("dual_linear", TORCH_BOX(&prefiqs::dual_linear));
  m.impl("embedding_distance", TORCH_BOX(&prefiqs::embedding_distance));
  m.impl("dense_norm", TORCH_BOX(&prefiqs::dense_norm));
}
