// gemm_conv.h compiled for any CPU.
#include "cpu/gemm_conv.h"

namespace prefiqs {
extern const ConvKernel gemm_conv_scalar{"gemm", "scalar", gemm_fits, gemm_work_items, gemm_run};
}  // namespace prefiqs
