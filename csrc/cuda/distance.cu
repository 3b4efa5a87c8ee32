// D = |e - e'| of two L2-normalised embeddings, as the norm of the difference; sqrt(2 - 2 cos) would lose all digits of
// a small D.
//
// Layout: pair [2 * rows][features], dense rows first; one warp for each dense row and its pruned twin. Nothing is
// shared. Loop: read both rows for the norms, then again for the difference. Sums are in double, as on the CPU, so that
// the order of a row's few hundred terms never shows in the float results. A row of norm zero stays zero.
#include "cuda/conv.cuh"
#include "cuda/row_kernels.cuh"

namespace prefiqs::cuda {
namespace {

constexpr int threads = 128, block_rows = threads / 32;

template <class T>
__device__ double norm(const T* row, int64_t features, int lane) {
  double sum = 0;
  for (int64_t i = lane; i < features; i += 32) {
    const double x = to_float(row[i]);
    sum += x * x;
  }
  return sqrt(warp_sum(sum));
}

__device__ double inverse(double norm) { return norm == 0 ? 0 : 1 / norm; }

template <class T>
__global__ void __launch_bounds__(threads) embedding_distance(const __grid_constant__ DistanceParams p) {
  const int lane = threadIdx.x % 32;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * block_rows + threadIdx.x / 32;
  if (row >= p.rows) return;  // a whole warp
  const T* dense = static_cast<const T*>(p.pair) + row * p.features;
  const T* pruned = dense + p.rows * p.features;
  const double dense_norm = norm(dense, p.features, lane);
  const double dense_scale = inverse(dense_norm), pruned_scale = inverse(norm(pruned, p.features, lane));
  double sum = 0;
  for (int64_t i = lane; i < p.features; i += 32) {
    const double a = to_float(dense[i]) * dense_scale, b = to_float(pruned[i]) * pruned_scale;
    sum += (a - b) * (a - b);
    p.embedding[row * p.features + i] = static_cast<float>(a);
    p.pruned_embedding[row * p.features + i] = static_cast<float>(b);
  }
  sum = warp_sum(sum);
  if (lane == 0) {
    p.distance[row] = static_cast<float>(sqrt(sum));
    p.embedding_norm[row] = static_cast<float>(dense_norm);
  }
}

template <class T>
cudaError_t launch_type(const DistanceParams& p, cudaStream_t stream) {
  return launch(embedding_distance<T>, (p.rows + block_rows - 1) / block_rows, threads, 0, stream, p);
}

}  // namespace

cudaError_t launch_distance(const DistanceParams& p, cudaStream_t stream) {
  return launch_as(p.pair_type, [&](auto zero) { return launch_type<decltype(zero)>(p, stream); });
}

}  // namespace prefiqs::cuda
