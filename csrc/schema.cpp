// Every operator's schema, in one place. Kernels register against these names in cpu/ops.cpp and cuda/ops.cpp; the
// meaning of each argument is written where users read it, in prefiqs_ext/ops.py.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(prefiqs_ext, m) {
  m.def(
      "dual_conv2d(Tensor src, Tensor weight, Tensor? mask, Tensor? pruned_scale, Tensor? bias, Tensor? tap_shift, "
      "Tensor? slope, "
      "Tensor? residual, int[2] stride, int[2] padding, int[2] dilation, int groups, bool paired) -> Tensor");
  m.def(
      "dual_conv2d.out(Tensor src, Tensor weight, Tensor? mask, Tensor? pruned_scale, Tensor? bias, Tensor? tap_shift, "
      "Tensor? slope, "
      "Tensor? residual, int[2] stride, int[2] padding, int[2] dilation, int groups, bool paired, *, Tensor(a!) out) "
      "-> ()");
  m.def(
      "dual_linear(Tensor src, Tensor weight, Tensor? mask, Tensor? pruned_scale, Tensor? bias, bool paired) -> "
      "Tensor");
  m.def(
      "embedding_distance(Tensor pair) -> (Tensor distance, Tensor embedding, Tensor pruned_embedding, "
      "Tensor embedding_norm)");
  m.def("dense_norm(Tensor src, bool paired) -> Tensor");
}
