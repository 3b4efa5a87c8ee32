// How the matrix product of a layer is cut into blocks. The cut of a sum depends on the layer's shape alone; how the
// parts are spread over the machine depends on the batch and the machine too, and changes no bit.
#pragma once
#include "cuda/conv.cuh"

namespace prefiqs::cuda {

// What a block computes: `channels` filters by `pixels` pixels of each of two halves.
enum class Tile { wide, deep, middle, narrow };

struct GemmPlan {
  Tile tile;
  bool plain;         // src is not in 16-byte pieces along K: loaded value by value
  int segments;       // a sum over K is this many sums, added in order
  int segment_steps;  // of k_step, in each but the last
  bool split;         // a block for each segment, and a second kernel that adds; else one block for all of them
};

struct TileShape {
  int channels, pixels;
  bool totals;  // registers for the sum over segments
};

// Largest first. Large tiles read less from memory for the same work; small ones fill the machine.
constexpr TileShape tile_shape(Tile tile) {
  return tile == Tile::wide     ? TileShape{128, 64, false}
         : tile == Tile::deep   ? TileShape{128, 64, true}
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

// Where one image gives only few narrow tiles, its sums are cut into as many segments as make 128 blocks of them, each
// at least 16 steps deep; never from the number of images. More layers would gain at one image, but pay in large
// batches: a block that runs several segments needs registers for their totals, and so reads shared memory more often.
inline void cut_segments(const Conv& p, GemmPlan& plan) {
  constexpr int few_tiles = 24, wanted_blocks = 128, least_steps = 16;
  const int64_t tiles = static_cast<int64_t>(p.groups) * channel_tiles(p, Tile::narrow) *
                        ceil_div(p.out_h * p.out_w, tile_shape(Tile::narrow).pixels);
  const int wanted =
      tiles < few_tiles ? max_of(1, min_of(static_cast<int>(wanted_blocks / tiles), p.steps / least_steps)) : 1;
  plan.segment_steps = ceil_div(p.steps, wanted);
  plan.segments = ceil_div(p.steps, plan.segment_steps);
}

// The largest tile that gives every multiprocessor a block, with a sum's segments in one block if that is enough, else
// in blocks of their own; the narrow tile where nothing fills the machine.
inline GemmPlan plan_gemm(const Conv& p, int multiprocessors) {
  GemmPlan plan{};
  plan.plain = p.src_uint8 || p.group_in_c % 8 != 0;
  cut_segments(p, plan);
  for (const bool split : {false, true}) {
    if (split && plan.segments == 1) break;
    plan.split = split;
    for (const Tile tile : {Tile::wide, Tile::deep, Tile::middle, Tile::narrow}) {
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

// The product as planned, then the sum over its segments if they ran in blocks of their own.
cudaError_t launch_gemm(const Conv& conv, const GemmPlan& plan, Type compute, cudaStream_t stream);

// The product alone. One file each, so that they compile side by side.
cudaError_t launch_gemm_float16(const Conv& conv, const GemmPlan& plan, cudaStream_t stream);
cudaError_t launch_gemm_bfloat16(const Conv& conv, const GemmPlan& plan, cudaStream_t stream);

// Adds the segments of a split product in order, and finishes them.
template <class T>
cudaError_t launch_sum_segments(const Conv& conv, int segments, cudaStream_t stream);

template <class T>
cudaError_t launch_depthwise(const Conv& conv, cudaStream_t stream);

}  // namespace prefiqs::cuda
