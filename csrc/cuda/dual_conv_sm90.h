// Which layers the kernel for compute capability 9.0a takes, and its launch; each type has a file of its own.
#pragma once
#include "cuda/gemm_plan.h"
#include "cuda/im2col.h"

namespace prefiqs::cuda {

// It takes 3x3 and 1x1 layers without groups that the copy engine can read. Like the order of the sums this depends on
// the layer's shape alone, so that a row's bits do not depend on its batch. The other kernel keeps two kinds of layers:
// deep ones on small maps, because it can spread the segments of their sums over the GPU; and those of up to 64
// filters, which leave half of a tile's products idle (docs/performance.md has the cycles).
inline bool fits_sm90(const Conv& p) {
  const bool kernel = (p.kernel_h == 3 && p.kernel_w == 3) || (p.kernel_h == 1 && p.kernel_w == 1);
  GemmPlan plan{};
  cut_segments(p, plan);
  return p.groups == 1 && kernel && p.out_c > 64 && plan.segments == 1 && fits_im2col(p);
}

// cudaErrorNoKernelImageForDevice where the build holds no code for 9.0a.
cudaError_t launch_sm90_float16(const Conv& conv, int multiprocessors, cudaStream_t stream);
cudaError_t launch_sm90_bfloat16(const Conv& conv, int multiprocessors, cudaStream_t stream);

}  // namespace prefiqs::cuda
