// What turns a finished sum into an output: scale of the pruned branch, bias, residual, activation.
#pragma once
#include "conv_params.h"
#include "cpu/vec.h"

namespace prefiqs {
namespace {

// For one vector of channels of one branch, `count` of which are valid, or all if it is `full`. `pixel` is the place of
// an output's pixel in dst, in floats.
template <bool full>
class Epilogue {
 public:
  Epilogue(const ConvParams& p, int64_t branch, int64_t channel, int64_t count)
      : count_(min_of(Vec::width, count)),
        bias_(p.branch_bias(branch) + channel),
        residual_(p.residual == nullptr ? nullptr : p.branch_residual(branch) + channel),
        dst_(p.branch_dst(branch) + channel),
        activated_(p.slope != nullptr),
        scale_(branch == 0 || p.pruned_scale == nullptr ? Vec::broadcast(1) : load(p.pruned_scale + channel)),
        slope_(!activated_           ? Vec::zero()
               : p.slope_stride == 0 ? Vec::broadcast(*p.slope)
                                     : load(p.slope + channel)) {}

  // For sums that are added up in several parts, dst holds the parts so far.
  Vec stored(int64_t pixel) const { return load(dst_ + pixel); }
  void store(Vec sum, int64_t pixel) const {
    if (full) {
      sum.store(dst_ + pixel);
    } else {
      sum.store(dst_ + pixel, count_);
    }
  }

  // `bias`: the place of the pixel's class in the bias table of the branch, in floats.
  void finish(Vec sum, int64_t pixel, int64_t bias) const {
    sum = Vec::fma(sum, scale_, load(bias_ + bias));  // rounded once: with a scale of 1 the bits of sum + bias
    if (residual_ != nullptr) sum = sum + load(residual_ + pixel);
    if (activated_) sum = Vec::prelu(sum, slope_);
    store(sum, pixel);
  }

  void prefetch(int64_t pixel) const {
    __builtin_prefetch(dst_ + pixel, 1);
    if (residual_ != nullptr) __builtin_prefetch(residual_ + pixel);
  }

 private:
  Vec load(const float* from) const { return full ? Vec::load(from) : Vec::load(from, count_); }

  int64_t count_;
  const float* bias_;
  const float* residual_;
  float* dst_;
  bool activated_;
  Vec scale_, slope_;
};

}  // namespace
}  // namespace prefiqs
