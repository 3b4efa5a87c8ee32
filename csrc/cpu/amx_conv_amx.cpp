// amx_conv.h compiled for AMX.
#include "cpu/amx_conv.h"

namespace prefiqs {
extern const ConvKernel amx_conv_amx{"amx", "amx", amx_fits, amx_work_items, amx_run};
}  // namespace prefiqs
