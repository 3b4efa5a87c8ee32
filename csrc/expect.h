// What the checks of operators are made of: messages, a tensor's size, dtype, place and storage, memory for results.
#pragma once
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/shim_utils.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cstdint>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace prefiqs {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Beyond any machine's memory, and far enough below 2^63 that kernels may multiply by a number's bytes or a tile's
// pixels.
constexpr int64_t most_numbers = int64_t{1} << 48;

// A list of numbers for a message; it becomes text only if the message is written.
struct ListText {
  const int64_t *begin, *end;
};

inline std::ostream& operator<<(std::ostream& text, ListText list) {
  text << '[';
  for (const int64_t* at = list.begin; at < list.end; ++at) text << (at == list.begin ? "" : ", ") << *at;
  return text << ']';
}

template <class Sizes>
ListText list_text(const Sizes& sizes) {
  return {sizes.data(), sizes.data() + sizes.size()};
}

inline ListText shape_text(const Tensor& t) { return list_text(t.sizes()); }

template <class... Parts>
void expect(bool condition, const char* op, const Parts&... parts) {
  if (condition) return;
  std::ostringstream text;
  text << "prefiqs_ext::" << op << ": ";
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

inline void expect_shape(const char* op, const char* name, const Tensor& t, const std::vector<int64_t>& shape) {
  bool same = t.dim() == static_cast<int64_t>(shape.size());
  for (int64_t d = 0; same && d < t.dim(); ++d) same = t.size(d) == shape[static_cast<size_t>(d)];
  expect(same, op, "expected ", name, " of shape ", list_text(shape), ", got ", shape_text(t));
}

// Whether a tensor of these sizes has few enough numbers; empty dimensions count as one, as in strides.
template <class Sizes>
bool countable(const Sizes& sizes) {
  int64_t product = 1;
  for (const int64_t size : sizes) {
    if (size > most_numbers / product) return false;
    product *= std::max<int64_t>(size, 1);
  }
  return true;
}

template <class Sizes>
void expect_countable(const char* op, const char* name, const Sizes& sizes) {
  expect(countable(sizes), op, "expected ", name, " of at most ", most_numbers, " numbers, got shape ",
         list_text(sizes));
}

// How many numbers lie from a tensor's first to its last, gaps included.
inline int64_t span_of(const Tensor& t) {
  if (t.numel() == 0) return 0;
  int64_t last = 0;
  for (int64_t d = 0; d < t.dim(); ++d) last += (t.size(d) - 1) * t.stride(d);
  return last + 1;
}

inline bool share_memory(const Tensor& a, const Tensor& b) {
  if (a.numel() == 0 || b.numel() == 0) return false;
  const auto* a_begin = static_cast<const char*>(a.const_data_ptr());
  const auto* b_begin = static_cast<const char*>(b.const_data_ptr());
  return a_begin < b_begin + span_of(b) * static_cast<int64_t>(b.element_size()) &&
         b_begin < a_begin + span_of(a) * static_cast<int64_t>(a.element_size());
}

// Storage may shrink under a tensor (UntypedStorage.resize_), which then reaches beyond it. Fake tensors have none.
inline void expect_stored(const char* op, const char* name, const Tensor& t) {
  int64_t stored = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(t.get(), &stored));
  const int64_t needed = (t.storage_offset() + span_of(t)) * static_cast<int64_t>(t.element_size());
  expect(t.numel() == 0 || needed <= stored, op, "expected ", name, " with a storage of ", needed,
         " bytes or more, got ", stored);
}

// As Python calls the dtype, without "torch.".
inline std::string dtype_name(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Half:
      return "float16";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Char:
      return "int8";
    case ScalarType::Short:
      return "int16";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Bool:
      return "bool";
    case ScalarType::ComplexHalf:
      return "complex32";
    case ScalarType::ComplexFloat:
      return "complex64";
    case ScalarType::ComplexDouble:
      return "complex128";
    default:  // of rare dtypes the two names differ in capitals only
      std::string name = torch::headeronly::toString(dtype);
      std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return std::tolower(c); });
      return name;
  }
}

inline std::string dtype_name(const Tensor& t) { return dtype_name(t.scalar_type()); }

inline void expect_dtype(const char* op, const char* name, const Tensor& t, ScalarType dtype) {
  expect(t.scalar_type() == dtype, op, "expected ", name, " of dtype ", dtype_name(dtype), ", got ", dtype_name(t));
}

// CPU kernels take float32 and bfloat16, CUDA kernels float16 too; there, float32 is converted on the way in.
inline bool is_float(const Tensor& t, const Tensor& src) {
  const ScalarType dtype = t.scalar_type();
  return dtype == ScalarType::Float || dtype == ScalarType::BFloat16 || (dtype == ScalarType::Half && src.is_cuda());
}

inline const char* float_names(const Tensor& src) {
  return src.is_cuda() ? "float32 or float16 or bfloat16" : "float32 or bfloat16";
}

inline void expect_float(const char* op, const char* name, const Tensor& t, const Tensor& src) {
  expect(is_float(t, src), op, "expected ", name, " of dtype ", float_names(src), ", got ", dtype_name(t));
}

// With two 16-bit formats in one call it would be open which one multiplies.
inline void expect_one_format(const char* op, const Tensor& src, const Tensor& weight) {
  const ScalarType dtype = src.scalar_type();
  expect(dtype == ScalarType::Byte || dtype == ScalarType::Float || dtype == weight.scalar_type(), op,
         "expected src of dtype float32 or of weight's, ", dtype_name(weight), ", got ", dtype_name(dtype));
}

inline ScalarType result_dtype(const Tensor& src, const Tensor& weight) {
  return src.scalar_type() == ScalarType::Byte ? weight.scalar_type() : src.scalar_type();
}

inline void expect_place(const char* op, const char* name, const Tensor& t, const Tensor& src) {
  expect(t.device() == src.device(), op, "expected ", name, " on the device of src");
  expect_stored(op, name, t);
}

using Shape = std::vector<int64_t>;
inline void expect_tensor(
    const char* op, const char* name, const Tensor& t, ScalarType dtype, const Shape& shape, const Tensor& src) {
  expect_dtype(op, name, t, dtype);
  expect_shape(op, name, t, shape);
  expect_place(op, name, t, src);
}

// Returns what `make` allocates for numbers of these sizes. The stable ABI reports a failure without its cause.
template <class Sizes, class Make>
Tensor expect_memory(
    const char* op, const Sizes& sizes, ScalarType dtype, const std::string& device, const Make& make) {
  try {
    return make();
  } catch (const std::exception&) {
    int64_t numbers = 1;
    for (const int64_t size : sizes) numbers *= size;
    const char* cause = device == "cpu" ? "" : " (CUDA out of memory)";
    expect(false, op, "expected memory for ", numbers, " numbers of dtype ", dtype_name(dtype), " on ", device,
           ", got none", cause, ": use a smaller batch");
    throw;
  }
}

}  // namespace prefiqs
