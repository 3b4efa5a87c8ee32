// linear_conv.h compiled for AVX2.
#include "cpu/linear_conv.h"

namespace prefiqs {
extern const ConvKernel linear_conv_avx2{"linear", "avx2", linear_fits, linear_work_items, linear_run};
}  // namespace prefiqs
