// What Python calls: one operator on guarded copies of its tensors.
#include <stdio.h>
#include <string.h>

#include <memory>

#include "cuda/dual_conv_sm90.h"
#include "emulator.h"

namespace {

using emulation::Buffer;
using namespace prefiqs::cuda;

struct Bytes {
  const void* data;
  int64_t size;
};

// Mirrored by tests/emulated.py, as are the others.
struct ConvCase {
  prefiqs::ConvGeometry geometry;
  int64_t compute, src_type, dst_type;
  Bytes src, weight, mask, pruned_scale, bias, tap_shift, slope, residual, dst;
  int64_t multiprocessors;
  int64_t tile, split;  // a plan to force; -1: the one the layer would get
  int64_t sm90;
  int64_t descending;
};

struct DistanceCase {
  int64_t rows, features, pair_type;
  Bytes pair, distance, embedding, pruned_embedding, embedding_norm;
  int64_t descending;
};

struct NormCase {
  int64_t rows, features, step, src_type;
  Bytes src, norm;
  int64_t descending;
};

struct Tensor {
  std::unique_ptr<Buffer> buffer;

  Tensor(const char* name, const Bytes& bytes, bool writable = false) {
    if (bytes.data == nullptr) return;
    buffer = std::make_unique<Buffer>(name, writable ? nullptr : bytes.data, static_cast<size_t>(bytes.size), writable);
  }
  template <class T>
  T* as() const {
    return buffer == nullptr ? nullptr : static_cast<T*>(buffer->data());
  }
  void copy_to(const Bytes& bytes) const {
    memcpy(const_cast<void*>(bytes.data), buffer->data(), static_cast<size_t>(bytes.size));
  }
};

ConvParams params_of(const ConvCase& c) {
  ConvParams p{};
  static_cast<prefiqs::ConvGeometry&>(p) = c.geometry;
  p.compute = static_cast<Type>(c.compute);
  p.src_type = static_cast<Type>(c.src_type);
  p.dst_type = static_cast<Type>(c.dst_type);
  return p;
}

GemmPlan plan_of(const ConvCase& c, const Conv& conv) {
  GemmPlan plan = plan_gemm(conv, static_cast<int>(c.multiprocessors));
  if (c.tile >= 0) plan.tile = static_cast<Tile>(c.tile);
  if (c.split >= 0) plan.split = c.split != 0;
  return plan;
}

int report(cudaError_t status, char* message, int64_t size) {
  const char* error = emulation::last_error();
  const char* refusal = status == cudaErrorInvalidConfiguration ? "too large to index" : "refused";
  snprintf(message, static_cast<size_t>(size), "%s", *error == '\0' && status != cudaSuccess ? refusal : error);
  return status;
}

}  // namespace

extern "C" {

// Of the case's masked or unmasked variant the tile, the segments, whether they are split, and the blocks.
void plan_conv(const ConvCase* c, int64_t* out) {
  ConvParams p = params_of(*c);
  p.mask = static_cast<const uint32_t*>(c->mask.data);
  const Conv conv(p);
  const GemmPlan plan = plan_of(*c, conv);
  out[0] = static_cast<int64_t>(plan.tile);
  out[1] = plan.segments;
  out[2] = plan.split;
  out[3] = gemm_blocks(conv, plan);
  out[4] = fits_sm90(conv);
}

int emulate_conv(const ConvCase* c, char* message, int64_t message_size) {
  emulation::descending = c->descending != 0;
  emulation::clear_error();
  const Tensor src("src", c->src), weight("weight", c->weight), mask("mask", c->mask),
      pruned_scale("pruned_scale", c->pruned_scale), bias("bias", c->bias), tap_shift("tap_shift", c->tap_shift),
      slope("slope", c->slope), residual("residual", c->residual), dst("dst", c->dst, true);
  ConvParams p = params_of(*c);
  p.src = src.as<void>();
  p.weight = weight.as<void>();
  p.mask = mask.as<uint32_t>();
  p.pruned_scale = pruned_scale.as<float>();
  p.bias = bias.as<float>();
  p.tap_shift = tap_shift.as<float>();
  p.slope = slope.as<float>();
  p.residual = residual.as<void>();
  p.dst = dst.as<void>();

  const int multiprocessors = static_cast<int>(c->multiprocessors);
  const GemmPlan plan = plan_of(*c, Conv(p));
  const bool forced = c->tile >= 0 || c->split >= 0;
  const int64_t floats = forced ? workspace_floats(Conv(p), plan) : conv_workspace_floats(p, multiprocessors);
  const Buffer workspace("workspace", nullptr, static_cast<size_t>(floats) * sizeof(float), true);
  p.workspace = static_cast<float*>(workspace.data());
  const cudaError_t status =
      forced ? launch_gemm(Conv(p), plan, p.compute, nullptr) : launch_conv(p, multiprocessors, c->sm90 != 0, nullptr);
  dst.copy_to(c->dst);
  return report(status, message, message_size);
}

int emulate_distance(const DistanceCase* c, char* message, int64_t message_size) {
  emulation::descending = c->descending != 0;
  emulation::clear_error();
  const Tensor pair("pair", c->pair), distance("distance", c->distance, true),
      embedding("embedding", c->embedding, true), pruned("pruned_embedding", c->pruned_embedding, true),
      norm("embedding_norm", c->embedding_norm, true);
  const DistanceParams p{c->rows,
                         c->features,
                         static_cast<Type>(c->pair_type),
                         pair.as<void>(),
                         distance.as<float>(),
                         embedding.as<float>(),
                         pruned.as<float>(),
                         norm.as<float>()};
  const cudaError_t status = launch_distance(p, nullptr);
  distance.copy_to(c->distance);
  embedding.copy_to(c->embedding);
  pruned.copy_to(c->pruned_embedding);
  norm.copy_to(c->embedding_norm);
  return report(status, message, message_size);
}

int emulate_norm(const NormCase* c, char* message, int64_t message_size) {
  emulation::descending = c->descending != 0;
  emulation::clear_error();
  const int64_t blocks = (c->features + norm_block - 1) / norm_block;
  const Tensor src("src", c->src), norm("norm", c->norm, true);
  const Buffer sums("sums", nullptr, static_cast<size_t>(c->rows * blocks) * sizeof(double), true);
  const NormParams p{c->rows,
                     c->features,
                     c->step,
                     blocks,
                     static_cast<Type>(c->src_type),
                     src.as<void>(),
                     static_cast<double*>(sums.data()),
                     norm.as<float>()};
  const cudaError_t status = launch_norm(p, nullptr);
  norm.copy_to(c->norm);
  return report(status, message, message_size);
}

}  // extern "C"
