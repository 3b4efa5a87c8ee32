// The convolution kernels, and how one is chosen. A kernel's work is a flat range of items that any thread may run in
// any split: what an item computes, and in which order it adds, depends on the layer's shape alone.
#pragma once
#include <cstddef>
#include <cstdint>

#include "conv_params.h"

namespace prefiqs {

struct ConvKernel {
  const char* algorithm;
  const char* isa;
  bool (*fits)(const ConvParams&);
  int64_t (*work_items)(const ConvParams&);
  void (*run)(const ConvParams&, int64_t begin, int64_t end);
};

extern const ConvKernel gemm_conv_scalar, gemm_conv_avx2, gemm_conv_avx512;
extern const ConvKernel winograd_conv_scalar, winograd_conv_avx2, winograd_conv_avx512;
extern const ConvKernel linear_conv_scalar, linear_conv_avx2, linear_conv_avx512;
extern const ConvKernel depthwise_conv_scalar, depthwise_conv_avx2, depthwise_conv_avx512;

// The first kernel of the ordered list that this CPU can run and that fits the layer. PREFIQS_CPU_ALGORITHM narrows the
// list, for tests and benchmarks.
const ConvKernel& choose_conv_kernel(const ConvParams&);

// The instruction set in use: the widest this CPU has, or what the environment variable PREFIQS_CPU_ISA names.
__attribute__((visibility("default"))) const char* cpu_isa();

// A 64-byte aligned buffer of the calling thread, kept between calls. A second call may move it.
float* thread_workspace(size_t floats);

}  // namespace prefiqs
