// The sums of squares of which norms are made, as the torch glue calls them.
#pragma once
#include <cstdint>

#include "bfloat16.h"

namespace prefiqs {

// A row is added up in blocks of this many numbers, so that threads can share few long rows. What a row's blocks are
// depends on its length alone.
constexpr int64_t norm_block = 16 * 1024;

// `sums` is [rows, ceil(features / norm_block)]: one number for each block of src [rows, features], whose rows are
// `step` numbers apart. Computes sums[begin..end). Number: float or BFloat16.
template <class Number>
void square_blocks(const Number* src, int64_t step, int64_t features, double* sums, int64_t begin, int64_t end);

}  // namespace prefiqs
