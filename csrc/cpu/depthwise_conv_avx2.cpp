// depthwise_conv.h compiled for AVX2.
#include "cpu/depthwise_conv.h"

namespace prefiqs {
extern const ConvKernel depthwise_conv_avx2{"depthwise", "avx2", depthwise_fits, depthwise_work_items, depthwise_run};
}  // namespace prefiqs
