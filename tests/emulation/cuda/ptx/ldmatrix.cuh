#pragma once
#include <cstring>

#include "emulator.h"

namespace prefiqs::cuda {

inline void ldmatrix_x4(uint32_t (&matrices)[4], uint32_t row) {
  struct Operands {
    uint32_t* matrices;
    uint32_t row;
  } operands{matrices, row};
  emulation::collective(
      "ldmatrix",
      [](void* const* lanes) {
        for (int row = 0; row < 32; ++row) {
          const auto* source = static_cast<const Operands*>(lanes[row]);
          const unsigned char* values = emulation::shared_at("ldmatrix", source->row, 16);
          for (int i = 0; i < 4; ++i) {
            const auto* target = static_cast<const Operands*>(lanes[row % 8 * 4 + i]);
            std::memcpy(target->matrices + row / 8, values + i * 4, 4);
          }
        }
      },
      &operands);
}

}  // namespace prefiqs::cuda
