// Stands in for libtorch_cuda.so while libprefiqs_cuda.so is linked; see cuda.cmake. Never installed.
#include <cstdint>

extern "C" __attribute__((visibility("default"))) int32_t aoti_torch_get_current_cuda_stream(int32_t, void**) {
  return 1;  // the shim's failure
}
