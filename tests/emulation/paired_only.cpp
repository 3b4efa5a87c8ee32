// In the place of dual_conv_sm90_float16.cu where compiling time matters more than modes: the mutants of the kernels.
#include "cuda/dual_conv_sm90.cuh"

namespace prefiqs::cuda {

cudaError_t launch_sm90_float16(const Conv& conv, int multiprocessors, cudaStream_t stream) {
  return launch_mode<Float16, Mode::masked_paired>(conv, multiprocessors, stream);
}

}  // namespace prefiqs::cuda
