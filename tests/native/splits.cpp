// The CPU kernels without torch: every way in which their work may be split among threads gives the bits of one thread,
// writes nothing but the result, and is free of races. The last is ThreadSanitizer's to say, the reads beyond a tensor
// AddressSanitizer's: `make sanitize` builds this program with either. It sees plain loads and stores, not the masked
// ones of AVX, which the portable kernels, the same code over four plain floats, stand for.
//
// What an item of work computes depends on the layer alone, so two things are tried: all items at once, each by a
// thread of its own, where every pair of items meets; and ranges of items, as every cut in two gives them, torch's even
// chunks, and for few items every way to cut at all.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "border_bias.h"
#include "cpu/dense_norm.h"
#include "cpu/distance.h"
#include "cpu/kernels.h"

namespace {

using prefiqs::BFloat16;
using prefiqs::ConvKernel;
using prefiqs::ConvParams;
using prefiqs::Format;
using Cuts = std::vector<int64_t>;  // 0, where each range but the last ends, the number of items
using Run = std::function<void(int64_t begin, int64_t end)>;

constexpr int64_t guard = 64;  // numbers on either side of a result
template <class Number>
constexpr Number untouched = -12345;
template <>
constexpr BFloat16 untouched<BFloat16>{0xc641};
int failures = 0;
int64_t splits = 0;

void expect(bool condition, const std::string& what) {
  if (condition) return;
  ++failures;
  std::fprintf(stderr, "%s\n", what.c_str());
}

std::vector<float> random_numbers(int64_t count, unsigned seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal;
  std::vector<float> numbers(static_cast<size_t>(count));
  for (float& number : numbers) number = normal(engine);
  return numbers;
}

// Random numbers in either format. Those in bfloat16 begin at an odd multiple of two bytes, as a view's may.
struct Numbers {
  std::vector<float> floats;
  std::vector<BFloat16> halves;

  Numbers() = default;
  Numbers(Format format, int64_t count, unsigned seed) : floats(random_numbers(count, seed)) {
    if (format == Format::float32) return;
    halves.push_back({});
    for (const float number : floats) halves.push_back(prefiqs::to_bfloat16(number));
    floats.clear();
  }
  const void* data() const { return halves.empty() ? static_cast<const void*>(floats.data()) : halves.data() + 1; }
};

// A result with guards around it.
template <class Number>
struct Guarded {
  std::vector<Number> numbers;

  explicit Guarded(int64_t count) : numbers(static_cast<size_t>(count + 2 * guard), untouched<Number>) {}
  Number* data() { return numbers.data() + guard; }
  bool same_bits(const Guarded& other) const {
    return std::memcmp(numbers.data(), other.numbers.data(), numbers.size() * sizeof(Number)) == 0;
  }
  bool complete() const {
    const auto inside = [&](size_t i) { return i >= guard && i + guard < numbers.size(); };
    for (size_t i = 0; i < numbers.size(); ++i) {
      if ((std::memcmp(&numbers[i], &untouched<Number>, sizeof(Number)) == 0) == inside(i)) return false;
    }
    return true;
  }
};

void run_by_threads(const Cuts& cuts, const Run& run) {
  std::vector<std::thread> threads;
  for (size_t i = 0; i + 1 < cuts.size(); ++i) {
    threads.emplace_back([&, i] { run(cuts[i], cuts[i + 1]); });
  }
  for (std::thread& thread : threads) thread.join();
}

std::vector<Cuts> ways_to_split(int64_t items) {
  std::vector<Cuts> ways;
  if (items <= 7) {
    for (int64_t bits = 0; bits < int64_t{1} << (items - 1); ++bits) {
      Cuts cuts{0};
      for (int64_t at = 1; at < items; ++at) {
        if (((bits >> (at - 1)) & 1) != 0) cuts.push_back(at);
      }
      cuts.push_back(items);
      ways.push_back(cuts);
    }
    return ways;
  }
  for (int64_t at = 1; at < items; ++at) ways.push_back({0, at, items});
  for (const int64_t threads : {int64_t{2}, int64_t{3}, int64_t{5}, int64_t{8}, items}) {  // as at::parallel_for does
    const int64_t chunk = (items + threads - 1) / threads;
    Cuts cuts{0};
    while (cuts.back() < items) cuts.push_back(std::min(cuts.back() + chunk, items));
    ways.push_back(cuts);
  }
  return ways;
}

// `run` computes items of work into a result of `count` numbers.
template <class Number, class RunRange>
void try_all_splits(const std::string& name, int64_t items, int64_t count, const RunRange& run) {
  Guarded<Number> expected(count);
  run(expected.data(), 0, items);
  expect(expected.complete(), name + ": a number is missing, or one beyond the result was written");
  for (const Cuts& cuts : ways_to_split(items)) {
    Guarded<Number> result(count);
    run_by_threads(cuts, [&](int64_t begin, int64_t end) { run(result.data(), begin, end); });
    expect(result.same_bits(expected), name + ": other bits in " + std::to_string(cuts.size() - 1) + " ranges, of " +
                                           std::to_string(items) + " items, the first of " + std::to_string(cuts[1]));
    ++splits;
  }
}

struct Shape {
  const char* name;
  const char* algorithm;
  int64_t images, in_c, out_c, groups, height, width, kernel, stride, pad, dilation;
};

// At least one for each algorithm; hardly anything divides the tiles. Those of AMX are small, because its twin takes
// long.
constexpr Shape shapes[] = {
    {"depthwise", "depthwise", 3, 37, 37, 37, 9, 8, 3, 1, 1, 1},
    {"depthwise, stride 2", "depthwise", 2, 18, 18, 18, 9, 8, 3, 2, 1, 2},
    {"winograd", "winograd", 3, 33, 70, 1, 9, 11, 3, 1, 1, 1},
    {"winograd, stride 2", "winograd", 3, 32, 40, 1, 15, 24, 3, 2, 1, 1},
    {"winograd, many tiles", "winograd", 5, 32, 33, 1, 25, 23, 3, 1, 1, 1},
    {"linear", "linear", 5, 2049, 130, 1, 1, 1, 1, 1, 0, 1},
    {"gemm, stem", "gemm", 3, 3, 21, 1, 9, 11, 3, 1, 1, 1},
    {"gemm, several blocks of k", "gemm", 2, 90, 70, 1, 5, 6, 3, 1, 1, 1},
    {"gemm, 1x1", "gemm", 3, 24, 36, 1, 7, 7, 1, 1, 0, 1},
    {"gemm, groups", "gemm", 2, 8, 6, 2, 6, 7, 5, 2, 2, 1},
    {"gemm, several blocks of filters", "gemm", 1, 390, 1100, 1, 2, 3, 1, 1, 0, 1},
    {"dot, several blocks of k", "dot", 2, 90, 70, 1, 5, 6, 3, 1, 1, 1},
    {"dot, 1x1", "dot", 3, 24, 36, 1, 7, 7, 1, 1, 0, 1},
    {"dot, groups", "dot", 2, 12, 6, 2, 6, 7, 5, 2, 2, 1},
    {"amx, images side by side", "amx", 3, 20, 40, 1, 7, 7, 3, 1, 1, 1},
    {"amx, two groups of images", "amx", 17, 18, 21, 1, 2, 3, 3, 1, 1, 1},
    {"amx, several strips", "amx", 1, 40, 21, 1, 33, 17, 1, 1, 0, 1},
    {"amx, stride 2", "amx", 2, 20, 40, 1, 9, 8, 3, 2, 1, 1},
    {"amx, 5x5", "amx", 1, 35, 33, 1, 6, 7, 5, 2, 2, 1},
    {"amx, unfolded", "amx", 3, 3, 21, 1, 9, 11, 5, 2, 2, 1},
    {"amx_linear", "amx_linear", 17, 4097, 65, 1, 1, 1, 1, 1, 0, 1},
};

// What a layer's tensors are, and whether it is a pair with a bias alone or a shared source with everything that an
// epilogue may have to do.
struct Variant {
  const char* name;
  Format src, weight, dst;
  bool plain_pair;

  bool fits(std::string_view algorithm) const {
    if (algorithm == "dot") return weight == Format::bfloat16 && src == Format::bfloat16;
    return weight == Format::bfloat16 || (algorithm != "amx" && algorithm != "amx_linear");
  }
};

constexpr Format float32 = Format::float32, bfloat16 = Format::bfloat16;
constexpr Variant variants[] = {
    {"", float32, float32, float32, false},
    {", plain pair", float32, float32, float32, true},
    {", bfloat16", bfloat16, bfloat16, bfloat16, false},
    {", bfloat16, plain pair", bfloat16, bfloat16, bfloat16, true},
    {", bfloat16 weights, plain pair", float32, bfloat16, float32, true},
    {", image of 8 bits", float32, bfloat16, bfloat16, false},
};

// An instruction set, and which algorithms have kernels of its own.
struct Set {
  const char* isa;
  std::vector<std::string_view> algorithms;

  bool has(std::string_view algorithm) const {
    return std::find(algorithms.begin(), algorithms.end(), algorithm) != algorithms.end();
  }
};

struct Layer {
  Numbers src, weight, residual;
  std::vector<float> bias, scale, shift, slope, table;
  std::vector<uint32_t> mask;
  prefiqs::TapRanges rows, cols;
  ConvParams params{};
  int64_t results;

  static int64_t out_size(int64_t in, const Shape& s) {
    return (in + 2 * s.pad - s.dilation * (s.kernel - 1) - 1) / s.stride + 1;
  }

  Layer(const Shape& s, const Variant& variant)
      : rows(s.height, out_size(s.height, s), variant.plain_pair ? 0 : s.kernel, s.stride, s.pad, s.dilation),
        cols(s.width, out_size(s.width, s), variant.plain_pair ? 0 : s.kernel, s.stride, s.pad, s.dilation) {
    const bool plain = variant.plain_pair;
    ConvParams& p = params;
    p.src_format = variant.src, p.weight_format = variant.weight, p.dst_format = variant.dst;
    p.images = s.images, p.branches = 2;
    p.in_h = s.height, p.in_w = s.width, p.in_c = s.in_c;
    p.out_h = out_size(s.height, s), p.out_w = out_size(s.width, s), p.out_c = s.out_c;
    p.kernel_h = p.kernel_w = s.kernel, p.stride_h = p.stride_w = s.stride, p.pad_h = p.pad_w = s.pad;
    p.dilation_h = p.dilation_w = s.dilation, p.groups = s.groups;
    p.src_shared = !plain, p.bias_shared = plain;
    p.mask_words = (p.depth() + 31) / 32, p.slope_stride = 1;
    const int64_t tables = plain ? 1 : 2;
    results = p.branches * p.pixels() * p.out_c;
    src = Numbers(variant.src, (plain ? 2 : 1) * p.images * p.in_plane(), 1);
    weight = Numbers(variant.weight, p.out_c * p.depth(), 2);
    bias = random_numbers(tables * p.out_c, 3);
    shift = random_numbers(tables * p.out_c * p.taps(), 4);
    table = prefiqs::bias_by_class(rows, cols, tables, p.out_c, s.kernel, s.kernel, bias.data(), p.out_c, shift.data());
    p.src = src.data(), p.weight = weight.data(), p.bias = table.data();
    p.row_class = rows.position_class.data(), p.col_class = cols.position_class.data();
    p.col_classes = cols.classes();
    if (plain) return;
    p.bias_branch_stride = rows.classes() * cols.classes() * p.out_c;
    std::mt19937 engine(5);
    for (int64_t i = 0; i < p.out_c * p.mask_words; ++i) mask.push_back(engine());
    scale = random_numbers(p.out_c, 6);
    slope = random_numbers(p.out_c, 7);
    residual = Numbers(variant.dst, 2 * p.pixels() * p.out_c, 8);
    p.mask = mask.data(), p.pruned_scale = scale.data(), p.slope = slope.data(), p.residual = residual.data();
  }
};

template <class Number>
void run_layer(const ConvKernel& kernel, ConvParams params, Number* result, int64_t begin, int64_t end) {
  params.dst = result;
  kernel.run(params, begin, end);
}

// Every shape in all formats, by the algorithm that it is for.
void try_convolutions(const Set& set) {
  for (const Shape& shape : shapes) {
    if (!set.has(shape.algorithm)) continue;
    setenv("PREFIQS_CPU_ALGORITHM", shape.algorithm, 1);
    for (const Variant& variant : variants) {
      if (!variant.fits(shape.algorithm)) continue;
      const Layer layer(shape, variant);
      const ConvKernel& kernel = prefiqs::choose_conv_kernel(layer.params);
      const std::string name = std::string(set.isa) + ", " + shape.name + variant.name;
      const auto run = [&](auto* result, int64_t begin, int64_t end) {
        run_layer(kernel, layer.params, result, begin, end);
      };
      if (variant.dst == bfloat16) {
        try_all_splits<BFloat16>(name, kernel.work_items(layer.params), layer.results, run);
      } else {
        try_all_splits<float>(name, kernel.work_items(layer.params), layer.results, run);
      }
    }
  }
}

// Threads that call the operators at the same time: each runs all layers, from another one on, so that the memory that
// a thread keeps serves layers of all sizes.
template <class Number>
void try_callers_at_once(const Set& set, const Variant& variant) {
  std::vector<Layer> layers;
  std::vector<const ConvKernel*> kernels;
  std::vector<Guarded<Number>> expected;
  unsetenv("PREFIQS_CPU_ALGORITHM");
  layers.reserve(std::size(shapes));  // a layer holds pointers to what is in it
  for (const Shape& shape : shapes) {
    if (!set.has(shape.algorithm) || !variant.fits(shape.algorithm)) continue;
    layers.emplace_back(shape, variant);
    kernels.push_back(&prefiqs::choose_conv_kernel(layers.back().params));
    expected.emplace_back(layers.back().results);
    run_layer(*kernels.back(), layers.back().params, expected.back().data(), 0,
              kernels.back()->work_items(layers.back().params));
  }
  constexpr int64_t callers = 4;
  std::vector<char> same(callers, 1);
  run_by_threads({0, 1, 2, 3, callers}, [&](int64_t caller, int64_t) {
    for (size_t i = 0; i < layers.size(); ++i) {
      const size_t at = (i + 3 * static_cast<size_t>(caller)) % layers.size();
      const ConvParams& params = layers[at].params;
      const ConvKernel& kernel = prefiqs::choose_conv_kernel(params);
      Guarded<Number> result(layers[at].results);
      run_layer(kernel, params, result.data(), 0, kernel.work_items(params));
      if (!result.same_bits(expected[at])) same[static_cast<size_t>(caller)] = 0;
    }
  });
  for (const char each : same) expect(each != 0, std::string(set.isa) + ": a caller among several got other bits");
}

// A row has the same bits in every batch, so it gets the same kernel. This map is too wide for AMX by a hair.
void try_batches() {
  setenv("PREFIQS_CPU_ISA", "amx-emulated", 1);
  unsetenv("PREFIQS_CPU_ALGORITHM");
  ConvParams p{};
  p.weight_format = bfloat16, p.branches = 2, p.src_shared = true;
  p.in_h = p.out_h = p.out_c = 1, p.in_c = 2048, p.in_w = p.out_w = 1101;
  p.kernel_h = p.kernel_w = p.stride_h = p.stride_w = p.dilation_h = p.dilation_w = p.groups = 1;
  p.images = 1;
  const ConvKernel* alone = &prefiqs::choose_conv_kernel(p);
  p.images = 16;
  expect(alone == &prefiqs::choose_conv_kernel(p), "another kernel for 16 images than for one");
}

void try_distance() {
  constexpr int64_t count = 37, features = 129;
  const std::vector<float> pair = random_numbers(2 * count * features, 9);
  // One result: distances, both embeddings, norms.
  try_all_splits<float>(
      "distance", count, 2 * count + 2 * count * features, [&](float* result, int64_t begin, int64_t end) {
        float* embedding = result + count;
        float* pruned = embedding + count * features;
        prefiqs::distance_rows({count, features, pair.data(), result, embedding, pruned, pruned + count * features},
                               begin, end);
      });
}

void try_norm() {
  constexpr int64_t count = 3, features = 2 * prefiqs::norm_block + 77, step = features + 5, blocks = 3;
  const std::vector<float> src = random_numbers(count * step, 10);
  try_all_splits<double>("norm", count * blocks, count * blocks, [&](double* sums, int64_t begin, int64_t end) {
    prefiqs::square_blocks(src.data(), step, features, sums, begin, end);
  });
  const Numbers halves(bfloat16, count * step, 10);
  try_all_splits<double>(
      "norm, bfloat16", count * blocks, count * blocks, [&](double* sums, int64_t begin, int64_t end) {
        prefiqs::square_blocks(static_cast<const BFloat16*>(halves.data()), step, features, sums, begin, end);
      });
}

}  // namespace

int main() {
  const std::vector<std::string_view> general{"depthwise", "winograd", "linear", "gemm"}, amx{"amx", "amx_linear"};
  const Set sets[] = {
      {"scalar", general},     {"avx2", general}, {"avx512", general},
      {"avx512bf16", {"dot"}}, {"amx", amx},      {"avx512bf16-emulated", {"dot"}},
      {"amx-emulated", amx},
  };
  for (const Set& set : sets) {
    setenv("PREFIQS_CPU_ISA", set.isa, 1);
    try {
      prefiqs::cpu_isa();
    } catch (const std::runtime_error&) {
      std::printf("%s: not tried, because this CPU does not have it\n", set.isa);
      continue;
    }
    const int64_t before = splits;
    try_convolutions(set);
    try_callers_at_once<float>(set, variants[0]);
    try_callers_at_once<BFloat16>(set, variants[2]);
    std::printf("%s: %lld splits\n", set.isa, static_cast<long long>(splits - before));
  }
  try_batches();
  try_distance();
  try_norm();
  std::printf("%lld splits, %d failures\n", static_cast<long long>(splits), failures);
  return failures == 0 ? 0 : 1;
}
