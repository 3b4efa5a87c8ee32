// winograd_conv.h compiled for any CPU.
#include "cpu/winograd_conv.h"

namespace prefiqs {
extern const ConvKernel winograd_conv_scalar{"winograd", "scalar", winograd_fits, winograd_work_items, winograd_run};
}  // namespace prefiqs
