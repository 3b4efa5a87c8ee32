// gemm_conv.h for instructions that multiply pairs of bfloat16 numbers and add both products to a float32 (VDPBF16PS).
//
// A pair takes the place of a number: the convolution is one of half as many channels, whose units of four bytes are
// copied and packed unseen. Layout, what sits in fast memory and the loop are those of gemm_conv.h; two bits of the
// mask belong to a unit. The order of a sum depends on the layer alone.
#pragma once
#include "cpu/gemm_conv.h"

namespace prefiqs {
namespace {

struct Bfloat16PairProduct {
  static constexpr int64_t numbers = 2;
  static Vec add(Vec x, Vec weight, Vec sum) { return Vec::add_pair_products(x, weight, sum); }
};

ConvParams pair_channels(const ConvParams& p) {
  ConvParams pairs = p;
  pairs.in_c /= 2;
  return pairs;
}

// Both tensors are in bfloat16, and no pair lies across two pixels or taps.
bool dot_fits(const ConvParams& p) {
  return p.weight_format == Format::bfloat16 && p.src_format == Format::bfloat16 && p.group_in_c() % 2 == 0;
}

// Winograd computes 3x3 layers in float32. It saves more multiplications than the instruction does, but not at
// stride 2.
bool dot_strided_fits(const ConvParams& p) { return dot_fits(p) && p.stride_h * p.stride_w > 1; }

int64_t dot_work_items(const ConvParams& p) { return gemm_work_items(pair_channels(p)); }

void dot_run(const ConvParams& p, int64_t begin, int64_t end) {
  run_items<float, float, BFloat16, Bfloat16PairProduct>(pair_channels(p), begin, end);
}

}  // namespace
}  // namespace prefiqs
