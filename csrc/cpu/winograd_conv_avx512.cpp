// winograd_conv.h compiled for AVX-512.
#include "cpu/winograd_conv.h"

namespace prefiqs {
extern const ConvKernel winograd_conv_avx512{"winograd", "avx512", winograd_fits, winograd_work_items, winograd_run};
}  // namespace prefiqs
