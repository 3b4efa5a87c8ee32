// dual_conv_sm90.cuh compiled for bfloat16.
#include "cuda/dual_conv_sm90.cuh"

namespace prefiqs::cuda {

cudaError_t launch_sm90_bfloat16(const Conv& conv, int multiprocessors, cudaStream_t stream) {
  return launch_product<BFloat16>(conv, multiprocessors, stream);
}

}  // namespace prefiqs::cuda
