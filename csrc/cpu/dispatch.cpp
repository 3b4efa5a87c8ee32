#include <array>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>

#include "cpu/kernels.h"

namespace prefiqs {
namespace {

// Widest first; within an instruction set the special kernels before the general one.
constexpr std::array kernels{
#ifdef PREFIQS_HAS_AVX512
    &depthwise_conv_avx512, &winograd_conv_avx512, &linear_conv_avx512, &gemm_conv_avx512,
#endif
#ifdef PREFIQS_HAS_AVX2
    &depthwise_conv_avx2,   &winograd_conv_avx2,   &linear_conv_avx2,   &gemm_conv_avx2,
#endif
    &depthwise_conv_scalar, &winograd_conv_scalar, &linear_conv_scalar, &gemm_conv_scalar,
};

bool cpu_has(const char* isa) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (std::strcmp(isa, "avx512") == 0) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("fma");
  }
  if (std::strcmp(isa, "avx2") == 0) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return std::strcmp(isa, "scalar") == 0;
}

// Null where the variable is not set or empty. Read anew at each call, so that a test can set it; that costs nothing
// beside a layer.
const char* environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr || *value == '\0' ? nullptr : value;
}

const char* pick_isa() {
  const char* forced = environment("PREFIQS_CPU_ISA");
  if (forced == nullptr) {
    for (const ConvKernel* kernel : kernels) {
      if (cpu_has(kernel->isa)) return kernel->isa;
    }
  }
  for (const ConvKernel* kernel : kernels) {
    if (std::strcmp(kernel->isa, forced) == 0 && cpu_has(forced)) return kernel->isa;
  }
  throw std::runtime_error(
      std::string("PREFIQS_CPU_ISA: expected avx512, avx2 or scalar, and one this CPU and build have; got '") + forced +
      "'");
}

}  // namespace

// Read anew at each call, so that a test can force another set; a lookup of the environment costs nothing beside a
// layer.
const char* cpu_isa() { return pick_isa(); }

const ConvKernel& choose_conv_kernel(const ConvParams& params) {
  const char* isa = cpu_isa();
  const char* forced = environment("PREFIQS_CPU_ALGORITHM");
  for (const ConvKernel* kernel : kernels) {
    if (std::strcmp(kernel->isa, isa) != 0 || !kernel->fits(params)) continue;
    if (forced == nullptr || std::strcmp(kernel->algorithm, forced) == 0) return *kernel;
  }
  // The general kernel fits every layer, so only a forced algorithm can bring us here.
  throw std::runtime_error(
      std::string(
          "PREFIQS_CPU_ALGORITHM: expected depthwise, winograd, linear or gemm, one that fits the layer; got '") +
      (forced == nullptr ? "" : forced) + "'");
}

float* thread_workspace(size_t floats) {
  struct Free {
    void operator()(float* p) const { std::free(p); }
  };
  thread_local std::unique_ptr<float, Free> buffer;
  thread_local size_t capacity = 0;
  if (floats > capacity) {
    const size_t bytes = (floats * sizeof(float) + 63) / 64 * 64;
    buffer.reset();
    capacity = 0;
    buffer.reset(static_cast<float*>(std::aligned_alloc(64, bytes)));
    if (buffer == nullptr) throw std::bad_alloc();
    capacity = floats;
  }
  return buffer.get();
}

}  // namespace prefiqs
