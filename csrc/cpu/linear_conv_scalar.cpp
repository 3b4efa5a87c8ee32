// linear_conv.h compiled for any CPU.
#include "cpu/linear_conv.h"

namespace prefiqs {
extern const ConvKernel linear_conv_scalar{"linear", "scalar", linear_fits, linear_work_items, linear_run};
}  // namespace prefiqs
