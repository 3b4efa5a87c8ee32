#pragma once
#include <cstdint>

namespace prefiqs {

// pair [2 * rows, features], dense rows first; outputs [rows] and [rows, features].
struct DistanceParams {
  int64_t rows, features;
  const float* pair;
  float* distance;
  float* embedding;
  float* pruned_embedding;
  float* embedding_norm;
};

void distance_rows(const DistanceParams&, int64_t begin, int64_t end);

}  // namespace prefiqs
