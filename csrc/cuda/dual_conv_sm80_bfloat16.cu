// dual_conv_sm80.cuh compiled for bfloat16.
#include "cuda/dual_conv_sm80.cuh"

namespace prefiqs::cuda {

cudaError_t launch_gemm_bfloat16(const Conv& conv, const GemmPlan& plan, cudaStream_t stream) {
  return launch_product<BFloat16>(conv, plan, stream);
}

}  // namespace prefiqs::cuda
