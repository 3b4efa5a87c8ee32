// winograd_conv.h compiled for AVX2.
#include "cpu/winograd_conv.h"

namespace prefiqs {
extern const ConvKernel winograd_conv_avx2{"winograd", "avx2", winograd_fits, winograd_work_items, winograd_run};
}  // namespace prefiqs
