// linear_conv.h compiled for AVX-512.
#include "cpu/linear_conv.h"

namespace prefiqs {
extern const ConvKernel linear_conv_avx512{"linear", "avx512", linear_fits, linear_work_items, linear_run};
}  // namespace prefiqs
