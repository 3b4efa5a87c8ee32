// What turns a finished sum into an output: scale of the pruned branch, bias, residual, activation.
#pragma once
#include <type_traits>

#include "conv_params.h"
#include "cpu/vec.h"

namespace prefiqs {
namespace {

// For one vector of channels of one branch, `count` of which are valid, or all if it is `full`. `pixel` is the place of
// an output's pixel in dst, in numbers. Weight: the type of the weights, which float32 results follow.
template <class Weight, bool full>
class Epilogue {
 public:
  Epilogue(const ConvParams& p, int64_t branch, int64_t channel, int64_t count)
      : count_(min_of(Vec::width, count)),
        bias_(p.branch_bias(branch) + channel),
        bfloat16_(p.dst_format == Format::bfloat16),
        has_residual_(p.residual != nullptr),
        activated_(p.slope != nullptr),
        scale_(branch == 0 || p.pruned_scale == nullptr ? Vec::broadcast(1) : load(p.pruned_scale + channel)),
        slope_(!activated_           ? Vec::zero()
               : p.slope_stride == 0 ? Vec::broadcast(*p.slope)
                                     : load(p.slope + channel)) {
    if (is_bfloat16()) {
      place<BFloat16>(p, branch, channel);
    } else {
      place<float>(p, branch, channel);
    }
  }

  // `bias`: the place of the pixel's class in the bias table of the branch, in floats.
  void finish(Vec sum, int64_t pixel, int64_t bias) const {
    if (is_bfloat16()) {
      finish_as<BFloat16>(sum, pixel, bias);
    } else {
      finish_as<float>(sum, pixel, bias);
    }
  }

  void prefetch(int64_t pixel) const {
    const int64_t bytes = pixel * static_cast<int64_t>(is_bfloat16() ? sizeof(BFloat16) : sizeof(float));
    __builtin_prefetch(static_cast<char*>(dst_) + bytes, 1);
    if (has_residual_) __builtin_prefetch(static_cast<const char*>(residual_) + bytes);
  }

 private:
  template <class Number>
  void place(const ConvParams& p, int64_t branch, int64_t channel) {
    if (has_residual_) residual_ = p.branch_residual<Number>(branch) + channel;
    dst_ = p.branch_dst<Number>(branch) + channel;
  }

  template <class Number>
  void finish_as(Vec sum, int64_t pixel, int64_t bias) const {
    sum = Vec::fma(sum, scale_, load(bias_ + bias));  // rounded once: with a scale of 1 the bits of sum + bias
    if (has_residual_) sum = sum + load(static_cast<const Number*>(residual_) + pixel);
    if (activated_) sum = Vec::prelu(sum, slope_);
    Number* dst = static_cast<Number*>(dst_) + pixel;
    if (full) {
      sum.store(dst);
    } else {
      sum.store(dst, count_);
    }
  }

  // Float32 weights give float32 results, which the compiler then knows.
  bool is_bfloat16() const { return std::is_same_v<Weight, BFloat16> && bfloat16_; }

  template <class Number>
  Vec load(const Number* from) const {
    return full ? Vec::load(from) : Vec::load(from, count_);
  }

  int64_t count_;
  const float* bias_;
  bool bfloat16_, has_residual_, activated_;
  const void* residual_ = nullptr;
  void* dst_ = nullptr;
  Vec scale_, slope_;
};

}  // namespace
}  // namespace prefiqs
