// The operators on CUDA tensors: checks, layouts, dtypes, the device and its stream. The arithmetic is in the kernels.
#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/shim_utils.h>

#include <cstdlib>
#include <string>

#include "checks.h"
#include "cuda/kernels.h"

namespace prefiqs::cuda {
namespace {

using torch::headeronly::MemoryFormat;
using OptionalTensor = std::optional<Tensor>;

struct Device {
  int multiprocessors, major, minor;
};

// All devices, asked once; empty where this build's CUDA runtime finds none, because the driver is too old for it.
const std::vector<Device>& devices() {
  static const std::vector<Device> found = [] {
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess) count = 0;
    std::vector<Device> all(static_cast<size_t>(count));
    for (int i = 0; i < count; ++i) {
      Device& device = all[static_cast<size_t>(i)];
      cudaDeviceGetAttribute(&device.multiprocessors, cudaDevAttrMultiProcessorCount, i);
      cudaDeviceGetAttribute(&device.major, cudaDevAttrComputeCapabilityMajor, i);
      cudaDeviceGetAttribute(&device.minor, cudaDevAttrComputeCapabilityMinor, i);
    }
    return all;
  }();
  return found;
}

Device device_at(const char* op, int32_t index) {
  const size_t place = static_cast<size_t>(index);
  expect(place < devices().size(), op, "expected a driver for CUDA ", CUDART_VERSION / 1000, ".",
         CUDART_VERSION % 1000 / 10,
         ", which prefiqs_ext was built with, got an older one: update the driver, or build "
         "prefiqs_ext with an nvcc of the driver's CUDA");
  const Device device = devices()[place];
  expect(device.major >= 8, op, "expected a GPU of compute capability 8.0 or newer, got ", device.major, ".",
         device.minor, ": move the tensors to the CPU");
  return device;
}

// Whether PREFIQS_CUDA_KERNEL, read once, asks for the kernel for compute capability 9.0.
bool sm90_asked(const char* op, const Device& device) {
  static const std::string kernel = [] {
    const char* value = std::getenv("PREFIQS_CUDA_KERNEL");
    return std::string(value == nullptr || *value == '\0' ? "sm80" : value);
  }();
  expect(kernel == "sm80" || kernel == "sm90", op, "expected PREFIQS_CUDA_KERNEL to be sm80 or sm90, got '", kernel,
         "'");
  if (kernel == "sm80") return false;
  expect(device.major == 9 && device.minor == 0, op,
         "expected a GPU of compute capability 9.0 for PREFIQS_CUDA_KERNEL=sm90, got ", device.major, ".", device.minor,
         ": unset it, or set it to sm80");
  return true;
}

// What a launch needs from the device of `src`, which is the current device as long as this object lives.
class Launch {
 public:
  Launch(const char* op, const Tensor& src)
      : op_(op), index_(src.get_device_index()), guard_(index_), device_(device_at(op, index_)) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index_, &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  bool sm90() const { return sm90_asked(op_, device_); }
  int multiprocessors() const { return device_.multiprocessors; }
  cudaStream_t stream() const { return stream_; }

  Tensor empty(const std::vector<int64_t>& shape,
               ScalarType dtype,
               MemoryFormat format = MemoryFormat::Contiguous) const {
    return expect_memory(op_, shape, dtype, "cuda:" + std::to_string(index_), [&] {
      const torch::stable::Device here(torch::headeronly::DeviceType::CUDA, index_);
      return torch::stable::empty(shape, dtype, std::nullopt, here, std::nullopt, format);
    });
  }

  void expect_success(cudaError_t status) const {
    const bool large = status == cudaErrorInvalidConfiguration;
    const char* remedy = large ? " (sizes too large to index? use a smaller batch)" : "";
    expect(status == cudaSuccess, op_, "expected the kernel to launch, got ", cudaGetErrorName(status), ": ",
           cudaGetErrorString(status), remedy);
  }

 private:
  const char* op_;
  int32_t index_;
  torch::stable::accelerator::DeviceGuard guard_;
  const Device device_;
  cudaStream_t stream_;
};

Type type_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Half:
      return Type::float16;
    case ScalarType::BFloat16:
      return Type::bfloat16;
    case ScalarType::Byte:
      return Type::uint8;
    default:
      return Type::float32;
  }
}

bool aligned(const Tensor& t) { return reinterpret_cast<uintptr_t>(t.const_data_ptr()) % 16 == 0; }

// A tensor as the kernels want it: without gaps in `format`, at a multiple of 16 bytes. Most tensors are so already.
Tensor dense(const Tensor& t, MemoryFormat format = MemoryFormat::Contiguous) {
  const Tensor packed = torch::stable::contiguous(t, format);
  return aligned(packed) ? packed : torch::stable::clone(packed);
}

Tensor dense_as(ScalarType dtype, const Tensor& t, MemoryFormat format = MemoryFormat::Contiguous) {
  return dense(t.scalar_type() == dtype ? t : torch::stable::to(t, dtype), format);
}

OptionalTensor dense(const OptionalTensor& t, MemoryFormat format = MemoryFormat::Contiguous) {
  return t ? OptionalTensor(dense(*t, format)) : std::nullopt;
}

template <class T>
const T* data_or_null(const OptionalTensor& t) {
  return t ? static_cast<const T*>(t->const_data_ptr()) : nullptr;
}

// Tensor cores multiply 16-bit numbers: float32 weights become float16, a float32 source takes the format of weights.
ScalarType compute_dtype(const Tensor& weight) {
  return weight.scalar_type() == ScalarType::Float ? ScalarType::Half : weight.scalar_type();
}

void run_conv(const Launch& launch,
              ConvParams& p,
              const Tensor& src,
              const Tensor& weight,
              const OptionalTensor& mask,
              const OptionalTensor& pruned_scale,
              const OptionalTensor& bias,
              const OptionalTensor& tap_shift,
              const OptionalTensor& slope,
              const OptionalTensor& residual,
              const Tensor& dst,
              MemoryFormat format) {
  const ScalarType compute = compute_dtype(weight);
  const Tensor src_dense = dense_as(src.scalar_type() == ScalarType::Byte ? ScalarType::Byte : compute, src, format);
  const Tensor weight_dense = dense_as(compute, weight, format);
  const OptionalTensor mask_dense = dense(mask), scales = dense(pruned_scale), biases = dense(bias),
                       shifts = dense(tap_shift), slopes = dense(slope), residual_dense = dense(residual, format);
  const Tensor target = aligned(dst) ? dst : torch::stable::empty_like(dst);

  p.compute = type_of(compute);
  p.src_type = type_of(src_dense.scalar_type());
  p.dst_type = type_of(dst.scalar_type());
  p.src = src_dense.const_data_ptr();
  p.weight = weight_dense.const_data_ptr();
  p.mask = data_or_null<uint32_t>(mask_dense);
  p.pruned_scale = data_or_null<float>(scales);
  p.bias = data_or_null<float>(biases);
  p.tap_shift = data_or_null<float>(shifts);
  p.slope = data_or_null<float>(slopes);
  p.residual = data_or_null<void>(residual_dense);
  p.dst = target.mutable_data_ptr();

  OptionalTensor workspace;
  if (const int64_t floats = conv_workspace_floats(p, launch.multiprocessors()); floats > 0) {
    workspace = launch.empty({floats}, ScalarType::Float);
    p.workspace = workspace->mutable_data_ptr<float>();
  }
  launch.expect_success(launch_conv(p, launch.multiprocessors(), launch.sm90(), launch.stream()));
  if (!aligned(dst)) {
    Tensor out = dst;
    torch::stable::copy_(out, target);
  }
}

// Writes into `out` if it is given, else into a new tensor.
Tensor dual_conv2d_into(OptionalTensor out,
                        const Tensor& src,
                        const Tensor& weight,
                        const OptionalTensor& mask,
                        const OptionalTensor& pruned_scale,
                        const OptionalTensor& bias,
                        const OptionalTensor& tap_shift,
                        const OptionalTensor& slope,
                        const OptionalTensor& residual,
                        const std::vector<int64_t>& stride,
                        const std::vector<int64_t>& padding,
                        const std::vector<int64_t>& dilation,
                        int64_t groups,
                        bool paired) {
  ConvParams p{};
  static_cast<ConvGeometry&>(p) = check_conv2d(src, weight, mask, pruned_scale, bias, tap_shift, slope, residual,
                                               stride, padding, dilation, groups, paired);
  const std::vector<int64_t> dst_shape = conv_dst_shape(p);
  const ScalarType dst_dtype = result_dtype(src, weight);
  if (out) {
    check_out("dual_conv2d", *out, dst_dtype, dst_shape, src,
              {weight, mask, pruned_scale, bias, tap_shift, slope, residual});
  }
  const Launch launch("dual_conv2d", src);
  const Tensor dst = out ? *out : launch.empty(dst_shape, dst_dtype, MemoryFormat::ChannelsLast);
  if (dst.numel() > 0) {
    run_conv(launch, p, src, weight, mask, pruned_scale, bias, tap_shift, slope, residual, dst,
             MemoryFormat::ChannelsLast);
  }
  return dst;
}

Tensor dual_conv2d(const Tensor& src,
                   const Tensor& weight,
                   const OptionalTensor& mask,
                   const OptionalTensor& pruned_scale,
                   const OptionalTensor& bias,
                   const OptionalTensor& tap_shift,
                   const OptionalTensor& slope,
                   const OptionalTensor& residual,
                   std::vector<int64_t> stride,
                   std::vector<int64_t> padding,
                   std::vector<int64_t> dilation,
                   int64_t groups,
                   bool paired) {
  return dual_conv2d_into(std::nullopt, src, weight, mask, pruned_scale, bias, tap_shift, slope, residual, stride,
                          padding, dilation, groups, paired);
}

void dual_conv2d_out(const Tensor& src,
                     const Tensor& weight,
                     const OptionalTensor& mask,
                     const OptionalTensor& pruned_scale,
                     const OptionalTensor& bias,
                     const OptionalTensor& tap_shift,
                     const OptionalTensor& slope,
                     const OptionalTensor& residual,
                     std::vector<int64_t> stride,
                     std::vector<int64_t> padding,
                     std::vector<int64_t> dilation,
                     int64_t groups,
                     bool paired,
                     const Tensor& out) {
  dual_conv2d_into(out, src, weight, mask, pruned_scale, bias, tap_shift, slope, residual, stride, padding, dilation,
                   groups, paired);
}

Tensor dual_linear(const Tensor& src,
                   const Tensor& weight,
                   const OptionalTensor& mask,
                   const OptionalTensor& pruned_scale,
                   const OptionalTensor& bias,
                   bool paired) {
  ConvParams p{};
  static_cast<ConvGeometry&>(p) = check_linear(src, weight, mask, pruned_scale, bias, paired);
  const Launch launch("dual_linear", src);
  const Tensor dst = launch.empty(linear_dst_shape(src, weight, p), result_dtype(src, weight));
  if (dst.numel() > 0) {
    run_conv(launch, p, src, weight, mask, pruned_scale, bias, {}, {}, {}, dst, MemoryFormat::Contiguous);
  }
  return dst;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> embedding_distance(const Tensor& pair) {
  check_pair(pair);
  const Launch launch("embedding_distance", pair);
  const int64_t rows = pair.size(0) / 2, features = pair.size(1);
  Tensor distance = launch.empty({rows}, ScalarType::Float), norm = launch.empty({rows}, ScalarType::Float);
  Tensor embedding = launch.empty({rows, features}, ScalarType::Float);
  Tensor pruned_embedding = launch.empty({rows, features}, ScalarType::Float);
  if (rows > 0) {
    const Tensor pair_dense = dense(pair);
    const DistanceParams p{
        rows,
        features,
        type_of(pair.scalar_type()),
        pair_dense.const_data_ptr(),
        distance.mutable_data_ptr<float>(),
        embedding.mutable_data_ptr<float>(),
        pruned_embedding.mutable_data_ptr<float>(),
        norm.mutable_data_ptr<float>(),
    };
    launch.expect_success(launch_distance(p, launch.stream()));
  }
  return {distance, embedding, pruned_embedding, norm};
}

Tensor dense_norm(const Tensor& src, bool paired) {
  check_norm(src, paired);
  const Launch launch("dense_norm", src);
  const int64_t rows = paired ? src.size(0) / 2 : src.size(0);
  const Tensor norm = launch.empty({rows}, ScalarType::Float);
  if (rows == 0) return norm;
  const Tensor dense = rows_without_gaps(src) ? src : torch::stable::contiguous(src);
  const int64_t features = dense.numel() / dense.size(0), blocks = (features + norm_block - 1) / norm_block;
  const Tensor sums = launch.empty({rows, blocks}, ScalarType::Double);
  const NormParams p{
      rows,
      features,
      dense.stride(0),
      blocks,
      type_of(dense.scalar_type()),
      dense.const_data_ptr(),
      sums.mutable_data_ptr<double>(),
      norm.mutable_data_ptr<float>(),
  };
  launch.expect_success(launch_norm(p, launch.stream()));
  return norm;
}

}  // namespace
}  // namespace prefiqs::cuda

STABLE_TORCH_LIBRARY_IMPL(prefiqs_ext, CUDA, m) {
  m.impl("dual_conv2d", TORCH_BOX(&prefiqs::cuda::dual_conv2d));
  m.impl("dual_conv2d.out", TORCH_BOX(&prefiqs::cuda::dual_conv2d_out));
  m.impl("dual_linear", TORCH_BOX(&prefiqs::cuda::dual_linear));
  m.impl("embedding_distance", TORCH_BOX(&prefiqs::cuda::embedding_distance));
  m.impl("dense_norm", TORCH_BOX(&prefiqs::cuda::dense_norm));
}
