// amx_linear.h compiled for AMX.
#include "cpu/amx_linear.h"

namespace prefiqs {
extern const ConvKernel amx_linear_amx{"amx_linear", "amx", amx_linear_fits, amx_linear_work_items, amx_linear_run};
}  // namespace prefiqs
