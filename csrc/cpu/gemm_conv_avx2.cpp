// gemm_conv.h compiled for AVX2.
#include "cpu/gemm_conv.h"

namespace prefiqs {
extern const ConvKernel gemm_conv_avx2{"gemm", "avx2", gemm_fits, gemm_work_items, gemm_run};
}  // namespace prefiqs
