// Which kernel runs a layer: the first in the list below that this CPU can run and that fits the layer's shape.
#include <array>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "cpu/kernels.h"
#ifdef PREFIQS_HAS_AMX
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace prefiqs {
namespace {

// The special algorithms before the general ones.
constexpr std::array kernels{
#ifdef PREFIQS_HAS_AMX
    &amx_linear_amx,
    &amx_conv_amx,
#endif
#ifdef PREFIQS_HAS_AVX512
    &dot_strided_conv_avx512bf16,
    &depthwise_conv_avx512,
    &winograd_conv_avx512,
    &linear_conv_avx512,
    &dot_conv_avx512bf16,
    &gemm_conv_avx512,
#endif
#ifdef PREFIQS_HAS_AVX2
    &depthwise_conv_avx2,
    &winograd_conv_avx2,
    &linear_conv_avx2,
    &gemm_conv_avx2,
#endif
    &amx_linear_emulated,
    &amx_conv_emulated,
    &dot_strided_conv_emulated,
    &depthwise_conv_scalar,
    &winograd_conv_scalar,
    &linear_conv_scalar,
    &dot_conv_emulated,
    &gemm_conv_scalar,
};

bool equal(const char* a, const char* b) { return std::strcmp(a, b) == 0; }

// A set runs its own kernels and those of the set that it builds on, `base`.
struct InstructionSet {
  const char* name;
  const char* base;
  bool multiplies_bfloat16;
  bool emulated;  // only where it is asked for
};

// Widest first.
constexpr std::array instruction_sets{
#ifdef PREFIQS_HAS_AMX
    InstructionSet{"amx", "avx512bf16", true, false},
#endif
#ifdef PREFIQS_HAS_AVX512
    InstructionSet{"avx512bf16", "avx512", true, false},
    InstructionSet{"avx512", "", false, false},
#endif
#ifdef PREFIQS_HAS_AVX2
    InstructionSet{"avx2", "", false, false},
#endif
    InstructionSet{"scalar", "", false, false},
    InstructionSet{"amx-emulated", "scalar", true, true},
    InstructionSet{"avx512bf16-emulated", "scalar", true, true},
};

bool builds_on(const InstructionSet& set, const char* isa) {
  if (equal(set.name, isa)) return true;
  for (const InstructionSet& base : instruction_sets) {
    if (equal(base.name, set.base)) return builds_on(base, isa);
  }
  return false;
}

#ifdef PREFIQS_HAS_AMX
// Linux hands out the memory that tiles take in a thread only on request, which is made once for all threads.
bool request_tiles() {
  constexpr long arch_req_xcomp_perm = 0x1023, tile_data = 18;
  static const bool granted = syscall(SYS_arch_prctl, arch_req_xcomp_perm, tile_data) == 0;
  return granted;
}
#endif

bool cpu_has_tiles() {
#ifdef PREFIQS_HAS_AMX
  __builtin_cpu_init();
  return __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16");
#else
  return false;
#endif
}

bool cpu_has(const InstructionSet& set) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const auto is = [&](const char* name) { return equal(set.name, name); };
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("fma");
  const bool avx512bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
#ifdef PREFIQS_HAS_AMX
  if (is("amx")) return avx512bf16 && cpu_has_tiles() && request_tiles();
#endif
  if (is("avx512bf16")) return avx512bf16;
  if (is("avx512")) return avx512;
  if (is("avx2")) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return equal(set.name, "scalar") || set.emulated;
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

const InstructionSet& choose_instruction_set() {
  const Choice choice("PREFIQS_CPU_ISA");
  for (const InstructionSet& set : instruction_sets) {
    const bool chosen = set.emulated ? equal(set.name, choice.value) : choice.allows(set.name);
    if (chosen && cpu_has(set)) return set;
  }
  choice.refuse("amx, avx512bf16, avx512, avx2 or scalar, and one this CPU and build have");
}

}  // namespace

const char* cpu_isa() { return choose_instruction_set().name; }

bool cpu_tiles_refused() {
#ifdef PREFIQS_HAS_AMX
  return cpu_has_tiles() && !request_tiles();
#else
  return false;
#endif
}

bool cpu_multiplies_bfloat16() { return choose_instruction_set().multiplies_bfloat16; }

const ConvKernel& choose_conv_kernel(const ConvParams& params) {
  const InstructionSet& set = choose_instruction_set();
  const Choice choice("PREFIQS_CPU_ALGORITHM");
  for (const ConvKernel* kernel : kernels) {
    if (builds_on(set, kernel->isa) && choice.allows(kernel->algorithm) && kernel->fits(params)) return *kernel;
  }
  // The general kernel fits every layer, so only a forced algorithm brings us here.
  choice.refuse("amx, amx_linear, depthwise, winograd, linear, dot or gemm, one that fits the layer");
}

}  // namespace prefiqs
