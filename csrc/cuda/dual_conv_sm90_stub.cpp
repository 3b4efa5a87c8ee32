// Takes the place of dual_conv_sm90_*.cu in a build without code for compute capability 9.0a.
#include "cuda/dual_conv_sm90.h"

namespace prefiqs::cuda {

cudaError_t launch_sm90_float16(const Conv&, int, cudaStream_t) { return cudaErrorNoKernelImageForDevice; }
cudaError_t launch_sm90_bfloat16(const Conv&, int, cudaStream_t) { return cudaErrorNoKernelImageForDevice; }

}  // namespace prefiqs::cuda
