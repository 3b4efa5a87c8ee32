// depthwise_conv.h compiled for AVX-512.
#include "cpu/depthwise_conv.h"

namespace prefiqs {
extern const ConvKernel depthwise_conv_avx512{"depthwise", "avx512", depthwise_fits, depthwise_work_items,
                                              depthwise_run};
}  // namespace prefiqs
