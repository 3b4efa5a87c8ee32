// dot_conv.h with products of pairs in plain C++, for tests on processors without the instruction.
#include "cpu/dot_conv.h"

namespace prefiqs {
extern const ConvKernel dot_conv_emulated{"dot", "avx512bf16-emulated", dot_fits, dot_work_items, dot_run};
extern const ConvKernel dot_strided_conv_emulated{"dot", "avx512bf16-emulated", dot_strided_fits, dot_work_items,
                                                  dot_run};
}  // namespace prefiqs
