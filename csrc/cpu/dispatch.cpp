// Which kernel runs a layer: the first in the list below that this CPU can run and that fits the layer's shape.
#include <array>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "cpu/kernels.h"

namespace prefiqs {
namespace {

// Widest instruction set first; within a set the special algorithms before the general one.
constexpr std::array kernels{
#ifdef PREFIQS_HAS_AVX512
    &depthwise_conv_avx512, &winograd_conv_avx512, &linear_conv_avx512, &gemm_conv_avx512,
#endif
#ifdef PREFIQS_HAS_AVX2
    &depthwise_conv_avx2,   &winograd_conv_avx2,   &linear_conv_avx2,   &gemm_conv_avx2,
#endif
    &depthwise_conv_scalar, &winograd_conv_scalar, &linear_conv_scalar, &gemm_conv_scalar,
};

bool equal(const char* a, const char* b) { return std::strcmp(a, b) == 0; }

bool cpu_has(const char* isa) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (equal(isa, "avx512")) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("fma");
  }
  if (equal(isa, "avx2")) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return equal(isa, "scalar");
}

// An environment variable that forces a choice; empty where it is not set. It is read at each call, so that a test can
// set it. That costs nothing beside a layer.
struct Choice {
  const char* name;
  const char* value;

  explicit Choice(const char* variable) : name(variable), value(std::getenv(variable)) {
    if (value == nullptr) value = "";
  }
  bool allows(const char* candidate) const { return *value == '\0' || equal(candidate, value); }
  [[noreturn]] void refuse(const char* expected) const {
    throw std::runtime_error(std::string(name) + ": expected " + expected + "; got '" + value + "'");
  }
};

}  // namespace

const char* cpu_isa() {
  const Choice choice("PREFIQS_CPU_ISA");
  for (const ConvKernel* kernel : kernels) {
    if (choice.allows(kernel->isa) && cpu_has(kernel->isa)) return kernel->isa;
  }
  choice.refuse("avx512, avx2 or scalar, and one this CPU and build have");
}

bool cpu_multiplies_bfloat16() {
#if defined(__x86_64__)
  return equal(cpu_isa(), "avx512") && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

const ConvKernel& choose_conv_kernel(const ConvParams& params) {
  const char* isa = cpu_isa();
  const Choice choice("PREFIQS_CPU_ALGORITHM");
  for (const ConvKernel* kernel : kernels) {
    if (equal(kernel->isa, isa) && choice.allows(kernel->algorithm) && kernel->fits(params)) return *kernel;
  }
  // The general kernel fits every layer, so only a forced algorithm brings us here.
  choice.refuse("depthwise, winograd, linear or gemm, one that fits the layer");
}

}  // namespace prefiqs
