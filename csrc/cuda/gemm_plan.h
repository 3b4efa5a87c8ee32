// The heuristics of the CUDA kernels: how the matrix product of a layer is cut into blocks. How a sum is cut depends on
// the layer's shape alone; how the parts are spread over the GPU also depends on the batch and the GPU, and changes no
// bit. All sizes here were chosen by calculation by 2026-11-30, with 132 multiprocessors in mind; none was
// measured on a GPU (docs/gpu.md).
#pragma once
#include "cuda/conv.cuh"

namespace prefiqs::cuda {

// What a block computes: so many filters by so many pixels of each of two halves.
enum class Tile { wide, deep, broad, middle, narrow };

struct GemmPlan {
  Tile tile;
  bool plain;         // src has no 16-byte pieces along K, so it is loaded value by value
  int segments;       // a sum over K is this many sums, added in order
  int segment_steps;  // of k_step, in each but the last
  bool split;         // a block for each segment and a second kernel that adds them; else one block for all
};

struct TileShape {
  int channels, pixels;
  bool totals;  // registers for the sum over segments
};

// Largest first. Large tiles read less memory for the same work; small tiles give every multiprocessor something to do.
constexpr TileShape tile_shape(Tile tile) {
  return tile == Tile::wide     ? TileShape{128, 64, false}
         : tile == Tile::deep   ? TileShape{128, 64, true}
         : tile == Tile::broad  ? TileShape{64, 128, false}
         : tile == Tile::middle ? TileShape{64, 64, true}
                                : TileShape{64, 32, true};
}

inline int channel_tiles(const Conv& p, Tile tile) { return ceil_div(p.group_out_c, tile_shape(tile).channels); }

inline int pixel_tiles(const Conv& p, Tile tile) {
  return ceil_div(p.pixels, tile_shape(tile).pixels * (p.mode == Mode::unmasked ? 2 : 1));
}

inline int64_t gemm_blocks(const Conv& p, const GemmPlan& plan) {
  return static_cast<int64_t>(channel_tiles(p, plan.tile)) * pixel_tiles(p, plan.tile) * p.groups *
         (plan.split ? plan.segments : 1);
}

// If one image has few narrow tiles, its sums are cut into as many segments as make 128 blocks, each at least 16 steps
// deep. The number of images never counts. More layers would gain from this at one image but lose in large batches: a
// block that runs several segments needs registers for their totals, and so reads shared memory more often.
// `few_tiles` is the number to try first on a GPU.
inline void cut_segments(const Conv& p, GemmPlan& plan) {
  constexpr int few_tiles = 24, wanted_blocks = 128, least_steps = 16;
  const int64_t tiles = static_cast<int64_t>(p.groups) * channel_tiles(p, Tile::narrow) *
                        ceil_div(p.out_h * p.out_w, tile_shape(Tile::narrow).pixels);
  const int wanted =
      tiles < few_tiles ? max_of(1, min_of(static_cast<int>(wanted_blocks / tiles), p.steps / least_steps)) : 1;
  plan.segment_steps = ceil_div(p.steps, wanted);
  plan.segments = ceil_div(p.steps, plan.segment_steps);
}

// Chooses the largest tile that gives every multiprocessor a block, with all segments of a sum in one block if that
// fills the GPU, else in separate blocks. The narrow tile if nothing fills it.
inline GemmPlan plan_gemm(const Conv& p, int multiprocessors) {
  GemmPlan plan{};
  plan.plain = p.src_uint8 || p.group_in_c % 8 != 0;
  cut_segments(p, plan);
  for (const bool split : {false, true}) {
    if (split && plan.segments == 1) break;
    plan.split = split;
    for (const Tile tile : {Tile::wide, Tile::deep, Tile::broad, Tile::middle, Tile::narrow}) {
      const TileShape shape = tile_shape(tile);
      plan.tile = tile;
      if (plan.plain && tile != Tile::middle) continue;
      if (shape.channels > 64 && p.group_out_c <= 64) continue;
      if (!split && plan.segments > 1 && !shape.totals) continue;
      if (gemm_blocks(p, plan) >= multiprocessors) return plan;
    }
  }
  plan.tile = plan.plain ? Tile::middle : Tile::narrow;
  return plan;
}

inline int64_t workspace_floats(const Conv& p, const GemmPlan& plan) {
  return plan.split ? plan.segments * p.partial_floats() : 0;
}

// Runs the product as planned, then adds its segments if they ran in separate blocks.
cudaError_t launch_gemm(const Conv& conv, const GemmPlan& plan, Type compute, cudaStream_t stream);

// Run the product alone. Each has a file of its own, so that they compile in parallel.
cudaError_t launch_gemm_float16(const Conv& conv, const GemmPlan& plan, cudaStream_t stream);
cudaError_t launch_gemm_bfloat16(const Conv& conv, const GemmPlan& plan, cudaStream_t stream);

// Adds the segments of a split product in order, and finishes them.
template <class T>
cudaError_t launch_sum_segments(const Conv& conv, int segments, cudaStream_t stream);

template <class T>
cudaError_t launch_depthwise(const Conv& conv, cudaStream_t stream);

}  // namespace prefiqs::cuda
