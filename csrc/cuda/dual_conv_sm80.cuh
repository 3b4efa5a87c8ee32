// Implicit GEMM for all but depthwise layers, by mma.sync, for compute capability 8.0 and later: D[co, pixel] = sum
// over k of weight[co, k] * im2col(src)[pixel, k]. A sum is one chain in the loader's order of k.
//
// Layout: a block has one tile of filters and two halves of pixels: both branches or, without a mask, two tiles.
// In shared memory: a ring of `stages` steps of 32 k: filters, one or two tiles of pixels, a mask word for each filter.
// In registers: the sums of both halves and, in some tiles, the totals of finished segments.
// Loop: for each step: wait for it; start loading the step three ahead; for each 16 k: load the weights, multiply them
// by the first half's pixels, AND them with the mask, multiply them by the second half's. After a segment its sums are
// added to the totals. At the end each half goes through shared memory into the epilogue.
#pragma once
#include "cuda/epilogue.cuh"
#include "cuda/gemm_loader.cuh"
#include "cuda/gemm_plan.h"
#include "cuda/ptx/hold_registers.cuh"
#include "cuda/ptx/ldmatrix.cuh"
#include "cuda/ptx/mma.cuh"
#include "cuda/ptx/prmt.cuh"

namespace prefiqs::cuda {
namespace {

constexpr int stages = 4;

// The warps of a block form a grid of warps_m by warps_n over its tile; blocks_per_sm bounds the registers of a thread.
template <Tile tile, int warps_m, int warps_n, int least_blocks>
struct Shape {
  static constexpr int channels = tile_shape(tile).channels, pixels = tile_shape(tile).pixels;
  static constexpr bool totals = tile_shape(tile).totals;
  static constexpr int threads = 32 * warps_m * warps_n, columns = warps_n, blocks_per_sm = least_blocks;
  static constexpr int warp_channels = channels / warps_m, warp_pixels = pixels / warps_n;
  static constexpr int m_tiles = warp_channels / 16, n_tiles = warp_pixels / 8;
  // The floats of a pixel's staged sums: four more spread the pixels of a fragment over the banks.
  static constexpr int staged_floats = channels + 4;
};

template <Tile tile>
struct ShapeOf;
template <>
struct ShapeOf<Tile::wide> : Shape<Tile::wide, 2, 2, 2> {};
template <>
struct ShapeOf<Tile::deep> : Shape<Tile::deep, 4, 2, 1> {};
template <>
struct ShapeOf<Tile::broad> : Shape<Tile::broad, 1, 4, 2> {};
template <>
struct ShapeOf<Tile::middle> : Shape<Tile::middle, 2, 2, 2> {};
template <>
struct ShapeOf<Tile::narrow> : Shape<Tile::narrow, 2, 2, 3> {};

// How a launch is cut; see GemmPlan.
struct Cut {
  int channel_tiles, pixel_tiles;
  int segment_steps;
  bool split;
};

template <class Shape>
using Sums = float[2][Shape::m_tiles][Shape::n_tiles][4];

// What a lane reads in every stage, by its place there: its row of the first fragment of weights and of pixels, and the
// mask word of its first filter. The other fragments follow at fixed distances, the second 16 k where bit 5 differs.
template <class Shape, class Load>
struct LanePlaces {
  static_assert(Load::stage_bytes % 64 == 0, "a stage begins where bit 5 is zero");
  uint32_t weights, pixels, words;

  __device__ LanePlaces() {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int channel = warp / Shape::columns * Shape::warp_channels;
    const int pixel = warp % Shape::columns * Shape::warp_pixels;
    weights = channel * row_bytes + swizzled(lane % 16, lane / 16);
    pixels = Load::weight_bytes + pixel * row_bytes + swizzled(lane / 16 * 8 + lane % 8, lane / 8 % 2);
    words = Load::weight_bytes + Load::pixel_bytes + (channel + lane / 4) * 4;
    hold_registers(weights);
    hold_registers(pixels);
    hold_registers(words);
  }
};

// Multiplies one step of K from its stage in the ring.
template <class Shape, class Load, class T, Mode mode>
__device__ void multiply(const unsigned char* stage, const LanePlaces<Shape, Load>& places, Sums<Shape>& sums) {
  const int lane = threadIdx.x % 32;
  const uint32_t weights = shared_address(stage) + places.weights, pixels = shared_address(stage) + places.pixels;

  // Bit 2t + 8q of a mask word, t = lane % 4, belongs to the lower value of fragment register q of its row: shifted to
  // the sign of byte q, which prmt then spreads over 16 bits; bit 2t + 1 + 8q likewise to the upper value.
  uint32_t lower[Shape::m_tiles][2], upper[Shape::m_tiles][2];
  if constexpr (mode != Mode::unmasked) {
    const auto* words = reinterpret_cast<const uint32_t*>(stage + places.words);
#pragma unroll
    for (int m = 0; m < Shape::m_tiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint32_t word = words[m * 16 + half * 8];
        lower[m][half] = word << (7 - lane % 4 * 2);
        upper[m][half] = word << (6 - lane % 4 * 2);
      }
    }
  }

#pragma unroll
  for (int k16 = 0; k16 < 2; ++k16) {
    uint32_t b[Load::sources][Shape::n_tiles / 2][4];
#pragma unroll
    for (int source = 0; source < Load::sources; ++source) {
#pragma unroll
      for (int n = 0; n < Shape::n_tiles / 2; ++n) {
        ldmatrix_x4(b[source][n], (pixels ^ k16 * 32) + (source * Shape::pixels + n * 16) * row_bytes);
      }
    }
#pragma unroll
    for (int m = 0; m < Shape::m_tiles; ++m) {
      uint32_t a[4];
      ldmatrix_x4(a, (weights ^ k16 * 32) + m * 16 * row_bytes);
#pragma unroll
      for (int n = 0; n < Shape::n_tiles; ++n) {
        mma_m16n8k16<T>(sums[0][m][n], a, b[0][n / 2][n % 2 * 2], b[0][n / 2][n % 2 * 2 + 1]);
      }
      if constexpr (mode != Mode::unmasked) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const uint32_t byte = k16 * 2 + i / 2;
          a[i] &= prmt(lower[m][i % 2], upper[m][i % 2], 0xcc88u + byte * 0x1111u);
        }
      }
      constexpr int second = Load::sources - 1;
#pragma unroll
      for (int n = 0; n < Shape::n_tiles; ++n) {
        mma_m16n8k16<T>(sums[1][m][n], a, b[second][n / 2][n % 2 * 2], b[second][n / 2][n % 2 * 2 + 1]);
      }
    }
  }
}

// Adds the sums to the totals. The first segment is copied, so that a sum of one segment is that segment, bit for bit.
template <class Shape>
__device__ void end_segment(Sums<Shape>& sums, Sums<Shape>& totals, bool first) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int m = 0; m < Shape::m_tiles; ++m) {
#pragma unroll
      for (int n = 0; n < Shape::n_tiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          totals[half][m][n][i] = first ? sums[half][m][n][i] : totals[half][m][n][i] + sums[half][m][n][i];
          sums[half][m][n][i] = 0;
        }
      }
    }
  }
}

// Writes one half's fragments to staged[pixel][channel].
template <class Shape>
__device__ void stage_sums(const float (&sums)[Shape::m_tiles][Shape::n_tiles][4], float* staged) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int channel = warp / Shape::columns * Shape::warp_channels + lane / 4;
  const int pixel = warp % Shape::columns * Shape::warp_pixels + lane % 4 * 2;
#pragma unroll
  for (int m = 0; m < Shape::m_tiles; ++m) {
#pragma unroll
    for (int n = 0; n < Shape::n_tiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        staged[(pixel + n * 8 + i % 2) * Shape::staged_floats + channel + m * 16 + i / 2 * 8] = sums[m][n][i];
      }
    }
  }
}

// A thread finishes a chunk of eight neighbouring channels.
template <class Shape>
constexpr int chunks = Shape::channels / 8;

// Returns where the thread's tap shifts are: in shared memory, if there is room, else in tap_shift.
template <class Shape, int room>
__device__ TapShift stage_tap_shift(const Conv& p, const BlockWork& work, int branch, float* staged) {
  if (p.taps > room / Shape::channels) {
    return TapShift::in_place(p, branch, work.channel + threadIdx.x % chunks<Shape> * 8);
  }
  return TapShift::copied<Shape::channels, Shape::threads>(p, branch, work.channel, work.channels, staged);
}

// Turns the staged sums of one half into outputs, or into a segment's partial sums.
template <class Shape, class T>
__device__ void finish_half(const Conv& p,
                            const BlockWork& work,
                            bool split,
                            int branch,
                            int first_pixel,
                            TapShift shift,
                            const float* staged) {
  const int chunk = threadIdx.x % chunks<Shape>, count = min_of(8, work.channels - chunk * 8);
  if (count <= 0) return;
  const int channel = work.channel + chunk * 8;
  const bool vector = p.group_out_c % 8 == 0;
  constexpr int step = Shape::threads / chunks<Shape>;
  const int first = first_pixel + threadIdx.x / chunks<Shape>, end = min_of(first_pixel + Shape::pixels, p.pixels);
  const auto for_each_pixel = [&](const auto& finish) {
    for (int pixel = first; pixel < end; pixel += step) {
      float sums[8];
      load_8(sums, staged + (pixel - first_pixel) * Shape::staged_floats + chunk * 8, 8, true);
      finish(sums, pixel);
    }
  };
  if (split) {
    float* partial =
        p.workspace + work.segment * p.partial_floats() + static_cast<int64_t>(branch) * p.pixels * p.out_c;
    for_each_pixel([&](const float (&sums)[8], int pixel) {
      store_8(partial + static_cast<int64_t>(pixel) * p.out_c + channel, sums, count, vector);
    });
  } else {
    const Epilogue<T> epilogue(p, branch, channel, count, vector, shift);
    uint4 next = epilogue.fetch_residual(first, end);
    for_each_pixel([&](float (&sums)[8], int pixel) {
      const uint4 residual = next;
      next = epilogue.fetch_residual(pixel + step, end);
      epilogue.finish(sums, pixel, residual);
    });
  }
}

template <class Shape>
__device__ BlockWork block_work(const Conv& p, const Cut& cut) {
  // Blocks that run at the same time share pixels first, then filters.
  int index = static_cast<int>(blockIdx.x);
  const int channel_tile = index % cut.channel_tiles;
  index /= cut.channel_tiles;
  const int pixel_tile = index % cut.pixel_tiles;
  index /= cut.pixel_tiles;
  const int group = index % p.groups, segment = index / p.groups;
  const int step = segment * cut.segment_steps;
  return {group,
          group * p.group_out_c + channel_tile * Shape::channels,
          p.group_out_c - channel_tile * Shape::channels,
          pixel_tile,
          segment,
          step,
          cut.split ? min_of(cut.segment_steps, p.steps - step) : p.steps};
}

template <class Shape, class Load>
constexpr int shared_bytes =
    max_of(stages * Load::stage_bytes, Shape::pixels* Shape::staged_floats* static_cast<int>(sizeof(float)));

template <class Shape, class T, Mode mode, bool plain>
__global__ void __launch_bounds__(Shape::threads, Shape::blocks_per_sm)
    dual_conv(const __grid_constant__ Conv p, const __grid_constant__ Cut cut) {
  using Load = Loader<Shape, mode, plain, T>;
  unsigned char* ring = shared_memory();
  const BlockWork work = block_work<Shape>(p, cut);
  Load loader(p, work);
  const LanePlaces<Shape, Load> places;
  Sums<Shape> sums = {};
  Sums<Shape> totals;

#pragma unroll
  for (int step = 0; step < stages - 1; ++step) {
    if (step < work.steps) loader.load(ring + step * Load::stage_bytes);
    cp_async_commit();
  }
  int in_segment = 0;
  for (int step = 0; step < work.steps; ++step) {
    cp_async_wait<stages - 2>();
    __syncthreads();
    if (step + stages - 1 < work.steps) loader.load(ring + (step + stages - 1) % stages * Load::stage_bytes);
    cp_async_commit();
    multiply<Shape, Load, T, mode>(ring + step % stages * Load::stage_bytes, places, sums);
    if constexpr (Shape::totals) {
      if (++in_segment == cut.segment_steps || step == work.steps - 1) {
        end_segment<Shape>(sums, totals, step < cut.segment_steps);
        in_segment = 0;
      }
    }
  }

  auto* staged = reinterpret_cast<float*>(ring);
  constexpr int staged_floats = Shape::pixels * Shape::staged_floats;
  constexpr int room = shared_bytes<Shape, Load> / static_cast<int>(sizeof(float)) - staged_floats;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int branch = mode == Mode::unmasked ? 0 : half;
    const int tile = mode == Mode::unmasked ? work.pixel_tile * 2 + half : work.pixel_tile;
    __syncthreads();
    stage_sums<Shape>(Shape::totals ? totals[half] : sums[half], staged);
    const TapShift shift = stage_tap_shift<Shape, room>(p, work, branch, staged + staged_floats);
    __syncthreads();
    finish_half<Shape, T>(p, work, cut.split, branch, tile * Shape::pixels, shift, staged);
  }
}

template <Tile tile, class T, Mode mode, bool plain>
cudaError_t launch_variant(const Conv& p, const GemmPlan& plan, cudaStream_t stream) {
  using Shape = ShapeOf<tile>;
  const Cut cut{channel_tiles(p, tile), pixel_tiles(p, tile), plan.segment_steps, plan.split};
  return launch(dual_conv<Shape, T, mode, plain>, gemm_blocks(p, plan), Shape::threads,
                shared_bytes<Shape, Loader<Shape, mode, plain, T>>, stream, p, cut);
}

template <Tile tile, class T, bool plain = false>
cudaError_t launch_tile(const Conv& p, const GemmPlan& plan, cudaStream_t stream) {
  switch (p.mode) {
    case Mode::unmasked:
      return launch_variant<tile, T, Mode::unmasked, plain>(p, plan, stream);
    case Mode::masked_shared:
      return launch_variant<tile, T, Mode::masked_shared, plain>(p, plan, stream);
    case Mode::masked_paired:
      return launch_variant<tile, T, Mode::masked_paired, plain>(p, plan, stream);
  }
  return cudaErrorInvalidValue;
}

template <class T>
cudaError_t launch_product(const Conv& p, const GemmPlan& plan, cudaStream_t stream) {
  if (plan.plain) return launch_tile<Tile::middle, T, true>(p, plan, stream);
  switch (plan.tile) {
    case Tile::wide:
      return launch_tile<Tile::wide, T>(p, plan, stream);
    case Tile::deep:
      return launch_tile<Tile::deep, T>(p, plan, stream);
    case Tile::broad:
      return launch_tile<Tile::broad, T>(p, plan, stream);
    case Tile::middle:
      return launch_tile<Tile::middle, T>(p, plan, stream);
    case Tile::narrow:
      return launch_tile<Tile::narrow, T>(p, plan, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace
}  // namespace prefiqs::cuda
