// The convolution kernels, and how one is chosen. A new algorithm is one template over Vec (a header like gemm_conv.h),
// one file for each instruction set that instantiates it, and a place in the list of dispatch.cpp.
#pragma once
#include <cstddef>
#include <cstdint>

#include "conv_params.h"

namespace prefiqs {

// A kernel's work is a flat range of items, which threads may split anywhere: what an item computes, and in which order
// it adds, depends on the layer's shape alone.
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

extern const ConvKernel dot_conv_avx512bf16, dot_conv_emulated;
extern const ConvKernel dot_strided_conv_avx512bf16, dot_strided_conv_emulated;
extern const ConvKernel amx_conv_amx, amx_conv_emulated;
extern const ConvKernel amx_linear_amx, amx_linear_emulated;

// The first kernel of the ordered list in dispatch.cpp that this CPU can run and that fits the layer. The environment
// variable PREFIQS_CPU_ALGORITHM forces an algorithm, for tests and benchmarks.
const ConvKernel& choose_conv_kernel(const ConvParams&);

// The instruction set in use: the widest that this CPU has, or the one that PREFIQS_CPU_ISA names. It runs the kernels
// of the sets that it builds on, too.
__attribute__((visibility("default"))) const char* cpu_isa();

// Whether that set multiplies bfloat16 numbers, rather than widening them to float32.
__attribute__((visibility("default"))) bool cpu_multiplies_bfloat16();

// Whether this CPU has AMX tiles that the system does not hand out.
__attribute__((visibility("default"))) bool cpu_tiles_refused();

// A 64-byte aligned buffer of the calling thread, kept between calls. A second call may move it.
float* thread_workspace(size_t floats);

}  // namespace prefiqs
