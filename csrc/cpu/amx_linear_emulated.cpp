// amx_linear.h with tiles in plain C++, for tests on processors without AMX.
#include "cpu/amx_linear.h"

namespace prefiqs {
extern const ConvKernel amx_linear_emulated{"amx_linear", "amx-emulated", amx_linear_fits, amx_linear_work_items,
                                            amx_linear_run};
}  // namespace prefiqs
