// D = |e - e'| of two L2-normalised embeddings, as the norm of the difference; sqrt(2 - 2 cos) would lose all digits of
// a small D.
//
// Layout: pair [2 * rows][features], dense rows first. Nothing is kept in fast memory.
// Loop: for each row: one pass for each norm, then one for the difference. Sums are in double, so that the order of a
// row's few hundred terms never shows in the float result. A row of norm zero stays zero.
#include "cpu/distance.h"

#include <cmath>

namespace prefiqs {
namespace {

double norm(const float* row, int64_t features) {
  double sum = 0;
  for (int64_t i = 0; i < features; ++i) sum += static_cast<double>(row[i]) * row[i];
  return std::sqrt(sum);
}

double inverse(double norm) { return norm == 0 ? 0 : 1 / norm; }

}  // namespace

void distance_rows(const DistanceParams& p, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const float* dense = p.pair + row * p.features;
    const float* pruned = p.pair + (p.rows + row) * p.features;
    const double dense_norm = norm(dense, p.features);
    const double dense_scale = inverse(dense_norm), pruned_scale = inverse(norm(pruned, p.features));
    double sum = 0;
    for (int64_t i = 0; i < p.features; ++i) {
      const double a = dense[i] * dense_scale, b = pruned[i] * pruned_scale;
      sum += (a - b) * (a - b);
      p.embedding[row * p.features + i] = static_cast<float>(a);
      p.pruned_embedding[row * p.features + i] = static_cast<float>(b);
    }
    p.distance[row] = static_cast<float>(std::sqrt(sum));
    p.embedding_norm[row] = static_cast<float>(dense_norm);
  }
}

}  // namespace prefiqs
