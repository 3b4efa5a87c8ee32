// The pybind11 module `prefiqs_ext._C`. Importing it loads the operator library beside it, which registers
// torch.ops.prefiqs_ext.*; no tensor passes through it, only what the package must know of its own build.
#include <pybind11/pybind11.h>

#include "cpu/kernels.h"

PYBIND11_MODULE(_C, m) {
  m.doc() = "Registers torch.ops.prefiqs_ext.* and tells how the extension was built.";
  m.def("cpu_isa", &prefiqs::cpu_isa,
        "The instruction set in use: 'avx512', 'avx2' or 'scalar'; PREFIQS_CPU_ISA forces one.");
  m.attr("built_with_torch") = PREFIQS_BUILD_TORCH;
  // Of libprefiqs_cuda.so: what compiled it and for which GPUs; or why it was not built.
  m.attr("built_with_nvcc") = PREFIQS_NVCC;
  m.attr("cuda_architectures") = PREFIQS_CUDA_ARCHITECTURES;
  m.attr("cuda_left_out") = PREFIQS_CUDA_LEFT_OUT;
}
