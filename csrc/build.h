// How the operator libraries were built, for `prefiqs info`. Kept by libprefiqs_ops.so, which wheels share.
#pragma once

namespace prefiqs {

struct Build {
  const char* torch;               // the version that gave the headers
  const char* nvcc;                // what compiled libprefiqs_cuda.so; empty if it was not built
  const char* cuda_architectures;  // its GPUs
  const char* cuda_left_out;       // why it was not built
};

__attribute__((visibility("default"))) const Build& build();

}  // namespace prefiqs
