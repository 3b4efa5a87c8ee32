// ldmatrix: four 8 x 8 matrices of 16-bit values. Lane l gives the address of row l % 8 of matrix l / 8 (16 bytes); it
// gets, of every matrix, values 2 * (l % 4) and the next of row l / 4.
#pragma once
#include <cstdint>

namespace prefiqs::cuda {

__device__ inline void ldmatrix_x4(uint32_t (&matrices)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
               : "r"(row)
               : "memory");
}

}  // namespace prefiqs::cuda
