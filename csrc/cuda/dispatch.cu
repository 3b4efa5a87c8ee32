// Which kernels run a layer: depthwise if every channel has one filter, else the implicit GEMM; the one for compute
// capability 9.0a only where it is asked for.
#include "cuda/dual_conv_sm90.h"

namespace prefiqs::cuda {
namespace {

bool is_depthwise(const Conv& p) { return p.group_in_c == 1 && p.group_out_c == 1; }

}  // namespace

cudaError_t launch_gemm(const Conv& p, const GemmPlan& plan, Type compute, cudaStream_t stream) {
  const bool float16 = compute == Type::float16;
  const cudaError_t status = float16 ? launch_gemm_float16(p, plan, stream) : launch_gemm_bfloat16(p, plan, stream);
  if (status != cudaSuccess || !plan.split) return status;
  return float16 ? launch_sum_segments<Float16>(p, plan.segments, stream)
                 : launch_sum_segments<BFloat16>(p, plan.segments, stream);
}

int64_t conv_workspace_floats(const ConvParams& params, int multiprocessors) {
  if (!Conv::fits(params)) return 0;  // launch_conv refuses it
  const Conv conv(params);
  return is_depthwise(conv) ? 0 : workspace_floats(conv, plan_gemm(conv, multiprocessors));
}

cudaError_t launch_conv(const ConvParams& params, int multiprocessors, bool sm90, cudaStream_t stream) {
  if (!Conv::fits(params)) return cudaErrorInvalidConfiguration;
  const Conv conv(params);
  if (sm90 && fits_sm90(conv)) {
    return params.compute == Type::float16 ? launch_sm90_float16(conv, multiprocessors, stream)
                                           : launch_sm90_bfloat16(conv, multiprocessors, stream);
  }
  if (!is_depthwise(conv)) return launch_gemm(conv, plan_gemm(conv, multiprocessors), params.compute, stream);
  return params.compute == Type::float16 ? launch_depthwise<Float16>(conv, stream)
                                         : launch_depthwise<BFloat16>(conv, stream);
}

}  // namespace prefiqs::cuda
