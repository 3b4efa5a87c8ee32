// What the torch glue calls on CUDA. No torch header here; the kernels are in the .cu files.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

#include "conv_params.h"

namespace prefiqs::cuda {

enum class Type { float16, bfloat16, float32, uint8 };

// Products are in `compute` (float16 or bfloat16, the type of weight), sums in float32. All pointers are to device
// memory, aligned to 16 bytes; ConvGeometry says the layouts.
struct ConvParams : ConvGeometry {
  Type compute;
  Type src_type;  // `compute` or uint8
  Type dst_type;  // `compute` or float32; residual's too
  const void* src;
  const void* weight;
  const uint32_t* mask;       // null: every branch uses the weights as they are
  const float* pruned_scale;  // [out_c], of the sums of the masked branch, or null; needs a mask
  const float* bias;          // [out_c], or with a mask [2][out_c] (not bias_shared), or null
  const float* tap_shift;     // [branches that differ: 2 with a mask, else 1][out_c][kernel_h][kernel_w], or null
  const float* slope;         // [out_c] or [1] (slope_stride 0), or null
  const void* residual;       // or null
  void* dst;
  float* workspace;  // of conv_workspace_floats(params); may be null where that is 0
};

struct DistanceParams {
  int64_t rows, features;  // pair is [2 * rows, features]
  Type pair_type;          // float16, bfloat16 or float32
  const void* pair;
  float* distance;          // [rows]
  float* embedding;         // [rows, features]
  float* pruned_embedding;  // [rows, features]
  float* embedding_norm;    // [rows]
};

// A row is added up in blocks of this many numbers, by its length alone.
constexpr int64_t norm_block = 4 * 1024;

struct NormParams {
  int64_t rows, features, step;  // src is [rows, features], rows `step` numbers apart
  int64_t blocks;                // features / norm_block, rounded up
  Type src_type;                 // float16, bfloat16 or float32
  const void* src;
  double* sums;  // workspace [rows, blocks]
  float* norm;   // [rows]
};

// The number of multiprocessors decides how the work is cut, never what comes out: a row's bits do not depend on its
// batch.
int64_t conv_workspace_floats(const ConvParams& params, int multiprocessors);

// All enqueue on `stream` and return the launch's status; cudaErrorInvalidConfiguration says that the sizes are too
// large to index. `sm90`: use the kernel for compute capability 9.0a for the layers that it takes; it adds in another
// order.
cudaError_t launch_conv(const ConvParams& params, int multiprocessors, bool sm90, cudaStream_t stream);
cudaError_t launch_distance(const DistanceParams& params, cudaStream_t stream);
cudaError_t launch_norm(const NormParams& params, cudaStream_t stream);

}  // namespace prefiqs::cuda
