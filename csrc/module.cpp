// The pybind11 module `prefiqs_ext._C`. Importing it loads the operator library beside it, which registers
// torch.ops.prefiqs_ext.*; no tensor passes through it, only what the package must know of its own build.
#include <pybind11/pybind11.h>

#include "build.h"
#include "cpu/kernels.h"

PYBIND11_MODULE(_C, m) {
  m.doc() = "Registers torch.ops.prefiqs_ext.* and tells how the extension was built.";
  m.def("cpu_isa", &prefiqs::cpu_isa,
        "The instruction set in use: 'amx', 'avx512bf16', 'avx512', 'avx2' or 'scalar'; PREFIQS_CPU_ISA forces one.");
  m.def("cpu_tiles_refused", &prefiqs::cpu_tiles_refused,
        "Whether this CPU has AMX tiles that the system does not hand out.");
  m.def("cpu_multiplies_bfloat16", &prefiqs::cpu_multiplies_bfloat16,
        "Whether the instruction set in use multiplies bfloat16 numbers.");
  const prefiqs::Build& build = prefiqs::build();
  m.attr("built_with_torch") = build.torch;
  m.attr("built_with_nvcc") = build.nvcc;
  m.attr("cuda_architectures") = build.cuda_architectures;
  m.attr("cuda_left_out") = build.cuda_left_out;
}
