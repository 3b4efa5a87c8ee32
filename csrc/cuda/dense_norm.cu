// The L2 norm of each row, in blocks of fixed length, so that few long rows fill the machine too.
//
// Layout: src [rows][features], rows `step` numbers apart; sums [rows][blocks] in between. One warp for each block,
// then one for each row. Nothing is shared. Loop: lane l of a warp adds the squares of numbers l, l + 32, ... of its
// block. Sums are in double: squares of float32 are exact there and cannot overflow.
#include "cuda/conv.cuh"
#include "cuda/row_kernels.cuh"

namespace prefiqs::cuda {
namespace {

constexpr int threads = 128, warps = threads / 32;

__device__ int64_t warp_index() { return static_cast<int64_t>(blockIdx.x) * warps + threadIdx.x / 32; }

template <class T>
__global__ void __launch_bounds__(threads) square_blocks(const __grid_constant__ NormParams p) {
  const int64_t block = warp_index();
  if (block >= p.rows * p.blocks) return;  // a whole warp
  const int64_t first = block % p.blocks * norm_block;
  const int64_t count = p.features - first < norm_block ? p.features - first : norm_block;
  const T* numbers = static_cast<const T*>(p.src) + block / p.blocks * p.step + first;
  double sum = 0;
#pragma unroll 8
  for (int64_t i = threadIdx.x % 32; i < count; i += 32) {
    const double x = to_float(numbers[i]);
    sum += x * x;
  }
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) p.sums[block] = sum;
}

__global__ void __launch_bounds__(threads) join_blocks(const __grid_constant__ NormParams p) {
  const int64_t row = warp_index();
  if (row >= p.rows) return;  // a whole warp
  double sum = 0;
  for (int64_t i = threadIdx.x % 32; i < p.blocks; i += 32) sum += p.sums[row * p.blocks + i];
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) p.norm[row] = static_cast<float>(sqrt(sum));
}

template <class T>
cudaError_t launch_type(const NormParams& p, cudaStream_t stream) {
  const int64_t all = p.rows * p.blocks;
  if (all > 0) {
    const auto status = launch(square_blocks<T>, (all + warps - 1) / warps, threads, 0, stream, p);
    if (status != cudaSuccess) return status;
  }
  return launch(join_blocks, (p.rows + warps - 1) / warps, threads, 0, stream, p);
}

}  // namespace

cudaError_t launch_norm(const NormParams& p, cudaStream_t stream) {
  return launch_as(p.src_type, [&](auto zero) { return launch_type<decltype(zero)>(p, stream); });
}

}  // namespace prefiqs::cuda
