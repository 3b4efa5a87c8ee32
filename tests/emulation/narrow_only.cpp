// In the place of dual_conv_sm80_*.cu where compiling time matters more than tile shapes: the mutants of the kernels.
#include "cuda/dual_conv_sm80.cuh"
#include "cuda/dual_conv_sm90.h"

namespace prefiqs::cuda {

cudaError_t launch_gemm_float16(const Conv& conv, const GemmPlan& plan, cudaStream_t stream) {
  return plan.plain ? launch_tile<Tile::middle, Float16, true>(conv, plan, stream)
                    : launch_tile<Tile::narrow, Float16>(conv, plan, stream);
}

cudaError_t launch_gemm_bfloat16(const Conv&, const GemmPlan&, cudaStream_t) { return cudaErrorInvalidValue; }
cudaError_t launch_sm90_bfloat16(const Conv&, int, cudaStream_t) { return cudaErrorInvalidValue; }

}  // namespace prefiqs::cuda
