// dot_conv.h compiled for AVX-512 with bfloat16.
#include "cpu/dot_conv.h"

namespace prefiqs {
extern const ConvKernel dot_conv_avx512bf16{"dot", "avx512bf16", dot_fits, dot_work_items, dot_run};
extern const ConvKernel dot_strided_conv_avx512bf16{"dot", "avx512bf16", dot_strided_fits, dot_work_items, dot_run};
}  // namespace prefiqs
