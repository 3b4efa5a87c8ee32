// amx_conv.h with tiles in plain C++, for tests on processors without AMX.
#include "cpu/amx_conv.h"

namespace prefiqs {
extern const ConvKernel amx_conv_emulated{"amx", "amx-emulated", amx_fits, amx_work_items, amx_run};
}  // namespace prefiqs
