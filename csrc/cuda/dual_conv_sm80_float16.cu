// dual_conv_sm80.cuh compiled for float16.
#include "cuda/dual_conv_sm80.cuh"

namespace prefiqs::cuda {

cudaError_t launch_gemm_float16(const Conv& conv, const GemmPlan& plan, cudaStream_t stream) {
  return launch_product<Float16>(conv, plan, stream);
}

}  // namespace prefiqs::cuda
