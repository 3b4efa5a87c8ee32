// gemm_conv.h compiled for AVX-512.
#include "cpu/gemm_conv.h"

namespace prefiqs {
extern const ConvKernel gemm_conv_avx512{"gemm", "avx512", gemm_fits, gemm_work_items, gemm_run};
}  // namespace prefiqs
