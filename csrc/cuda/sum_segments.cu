// Adds the segments of a product that ran in separate blocks, and finishes the sums.
//
// Layout: workspace [segment][branch][pixel][channel]; a thread has eight neighbouring channels of one pixel. Nothing
// is shared. Loop: add the segments in order, as a block that runs all of them does; then the epilogue.
#include "cuda/epilogue.cuh"
#include "cuda/gemm_plan.h"

namespace prefiqs::cuda {
namespace {

constexpr int threads = 128;

template <class T>
__global__ void __launch_bounds__(threads) sum_segments(const __grid_constant__ Conv p, int segments) {
  const int chunks = ceil_div(p.out_c, 8);
  const int64_t index = static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x;
  const int64_t row = index / chunks;  // of both branches
  if (row >= static_cast<int64_t>(p.branches) * p.pixels) return;
  const int channel = static_cast<int>(index % chunks) * 8, count = min_of(8, p.out_c - channel);
  const bool vector = p.out_c % 8 == 0;
  const float* partial = p.workspace + row * p.out_c + channel;
  float totals[8];
  load_8(totals, partial, count, vector);
  for (int segment = 1; segment < segments; ++segment) {
    float sums[8];
    load_8(sums, partial + segment * p.partial_floats(), count, vector);
#pragma unroll
    for (int i = 0; i < 8; ++i) totals[i] += sums[i];
  }
  const int branch = static_cast<int>(row / p.pixels);
  const Epilogue<T> epilogue(p, branch, channel, count, vector, TapShift::in_place(p, branch, channel));
  epilogue.finish(totals, static_cast<int>(row % p.pixels));
}

}  // namespace

template <class T>
cudaError_t launch_sum_segments(const Conv& p, int segments, cudaStream_t stream) {
  const int64_t items = static_cast<int64_t>(p.branches) * p.pixels * ceil_div(p.out_c, 8);
  return launch(sum_segments<T>, (items + threads - 1) / threads, threads, 0, stream, p, segments);
}

template cudaError_t launch_sum_segments<Float16>(const Conv&, int, cudaStream_t);
template cudaError_t launch_sum_segments<BFloat16>(const Conv&, int, cudaStream_t);

}  // namespace prefiqs::cuda
