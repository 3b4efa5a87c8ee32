#include "build.h"

namespace prefiqs {

const Build& build() {
  static constexpr Build values{PREFIQS_BUILD_TORCH, PREFIQS_NVCC, PREFIQS_CUDA_ARCHITECTURES, PREFIQS_CUDA_LEFT_OUT};
  return values;
}

}  // namespace prefiqs
