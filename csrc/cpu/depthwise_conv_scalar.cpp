// depthwise_conv.h compiled for any CPU.
#include "cpu/depthwise_conv.h"

namespace prefiqs {
extern const ConvKernel depthwise_conv_scalar{"depthwise", "scalar", depthwise_fits, depthwise_work_items,
                                              depthwise_run};
}  // namespace prefiqs
