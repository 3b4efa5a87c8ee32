// The distance of a pair of embeddings, as the torch glue calls it.
#pragma once
#include <cstdint>

namespace prefiqs {

// pair is [2 * rows, features], dense rows first; the outputs are [rows] or [rows, features].
struct DistanceParams {
  int64_t rows, features;
  const float* pair;
  float* distance;
  float* embedding;
  float* pruned_embedding;
  float* embedding_norm;
};

// Computes rows [begin, end).
void distance_rows(const DistanceParams&, int64_t begin, int64_t end);

}  // namespace prefiqs
