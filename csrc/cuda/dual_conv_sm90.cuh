// Dense 3x3 and 1x1 convolutions by wgmma, for compute capability 9.0a: D[co, pixel] = sum over k of weight[co, k] *
// im2col(src)[pixel, k], as in dual_conv_sm80.cuh.
//
// Layout: a tile is 128 filters by 128 pixels of each of two halves; rows in shared memory are 128 bytes, swizzled.
// In shared memory: a ring of `stages` steps of 64 channels of one tap (filters, one or two halves of pixels, three
// mask words for each filter), full and empty barriers, and for each warpgroup 16 pixels of staged sums and the tap
// shifts of its filters. Loop of the persistent blocks, for each tile: one warp fills the ring by the copy engine,
// three more copy the mask words. Two warpgroups, of 64 filters each, for each step: wait until it is full, load the
// filters, AND a copy with the mask, multiply both by their half's pixels into registers, free the stage. Then the sums
// go through shared memory, a few pixels at a time, into the epilogue: one copy of its code in a loop, as it is long.
#pragma once
#include "cuda/dual_conv_sm90.h"
#include "cuda/epilogue.cuh"
#include "cuda/ptx/hold_registers.cuh"
#include "cuda/ptx/ldmatrix.cuh"
#include "cuda/ptx/mbarrier.cuh"
#include "cuda/ptx/named_barrier.cuh"
#include "cuda/ptx/prmt.cuh"
#include "cuda/ptx/setmaxnreg.cuh"
#include "cuda/ptx/tma.cuh"
#include "cuda/ptx/wgmma.cuh"

namespace prefiqs::cuda {
namespace {

constexpr int stages = 4;
constexpr int group_threads = 128, group_channels = 64, groups = 2;
constexpr int tile_channels = groups * group_channels, tile_pixels = 128;
constexpr int threads = (groups + 1) * group_threads;
constexpr int weight_bytes = tile_channels * copy_row_bytes, pixel_bytes = tile_pixels * copy_row_bytes;
constexpr int filter_words = 3;  // hold 64 bits from any bit on; an odd number spreads the filters over all banks
constexpr int mask_threads = group_threads - 32, mask_rows = mask_threads / filter_words;
constexpr int staged_pixels = 16, staged_floats = group_channels + 4;
constexpr int staged_shifts = 9 * group_channels;  // of the largest kernel that it takes
constexpr int staging_bytes = (staged_pixels * staged_floats + staged_shifts) * static_cast<int>(sizeof(float));

// Byte offsets in shared memory, counted from its first multiple of 1024, and in a stage.
template <Mode mode>
struct Room {
  static constexpr int sources = mode == Mode::masked_shared ? 1 : 2;
  static constexpr int copied = weight_bytes + sources * pixel_bytes;  // by the copy engine, of a step
  static constexpr int masks = stages * copied;
  static constexpr int stage_masks = tile_channels * filter_words * 4;
  static constexpr int staging = masks + (mode == Mode::unmasked ? 0 : stages * stage_masks);
  static constexpr int full = staging + groups * staging_bytes;
  static constexpr int empty = full + stages * mbarrier_bytes;
  static constexpr int bytes = empty + stages * mbarrier_bytes + 1024;
};

// A place in the ring, and the parity of the round through it.
struct Turn {
  int stage = 0, parity = 0;

  __device__ void next() {
    if (++stage == stages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

struct Tiles {
  int channel_tiles, count;

  explicit Tiles(const Conv& p)
      : channel_tiles(ceil_div(p.out_c, tile_channels)),
        count(channel_tiles * ceil_div(p.pixels, tile_pixels * (p.mode == Mode::unmasked ? 2 : 1))) {}
  // Blocks that run at the same time share pixels first, then filters.
  __host__ __device__ int channel(int tile) const { return tile % channel_tiles * tile_channels; }
  __host__ __device__ int pixel(int tile, Mode mode, int half) const {
    const int place = tile / channel_tiles;
    return (mode == Mode::unmasked ? place * 2 + half : place) * tile_pixels;
  }
};

template <Mode mode>
__device__ void wait_until_free(uint32_t shared, const Turn& turn) {
  mbarrier_wait(shared + Room<mode>::empty + turn.stage * mbarrier_bytes, turn.parity ^ 1);
}

// Copies the filters and pixels of every step of every tile of the block; run by one warp.
template <Mode mode>
__device__ void copy_factors(
    const Conv& p, const Tiles& tiles, const TensorMap& src, const TensorMap& weight, uint32_t shared) {
  using Place = Room<mode>;
  const int steps = copy_steps(p);
  Turn turn;
  for (int tile = blockIdx.x; tile < tiles.count; tile += gridDim.x) {
    const int first_channel = tiles.channel(tile);
    const PixelPlace first(p, tiles.pixel(tile, mode, 0));
    PixelPlace second(p, tiles.pixel(tile, mode, 1));
    if constexpr (mode == Mode::masked_paired) second.image += p.images;
    CopyStep step;
#pragma unroll 1
    for (int i = 0; i < steps; ++i, step.next(p), turn.next()) {
      wait_until_free<mode>(shared, turn);
      if (threadIdx.x % 32 == 0) {
        const uint32_t full = shared + Place::full + turn.stage * mbarrier_bytes;
        const uint32_t stage = shared + turn.stage * Place::copied;
        mbarrier_arrive_expect(full, Place::copied);
        copy_tile(stage, weight, full, step.channel, step.tap, first_channel);
        const int s = step.s * p.dilation_w, r = step.r * p.dilation_h;
        copy_im2col(stage + weight_bytes, src, full, step.channel, first, s, r);
        if constexpr (Place::sources == 2) {
          copy_im2col(stage + weight_bytes + pixel_bytes, src, full, step.channel, second, s, r);
        }
      }
    }
  }
}

// Copies the mask words of every step of every tile of the block; run by the warps that would be idle. A thread copies
// the same one of the three words of every `mask_rows`-th filter.
template <Mode mode>
__device__ void copy_masks(const Conv& p, const Tiles& tiles, uint32_t shared) {
  using Place = Room<mode>;
  const int thread = threadIdx.x % group_threads - 32, steps = copy_steps(p);
  const int row = thread / filter_words, word = thread % filter_words;
  Turn turn;
  for (int tile = blockIdx.x; tile < tiles.count; tile += gridDim.x) {
    const int filters = p.out_c - tiles.channel(tile) - row;
    const uint32_t* words = p.mask + static_cast<int64_t>(tiles.channel(tile) + row) * p.mask_words + word;
    CopyStep step;
#pragma unroll 1
    for (int i = 0; i < steps; ++i, step.next(p), turn.next()) {
      wait_until_free<mode>(shared, turn);
      const uint32_t stage = shared + Place::masks + turn.stage * Place::stage_masks + thread * 4;
      const int place = step.k(p) / 32;
      const bool inside = place + word < p.mask_words;
#pragma unroll
      for (int filter = 0; filter < tile_channels; filter += mask_rows) {
        cp_async_4(stage + filter * filter_words * 4, words + place + static_cast<int64_t>(filter) * p.mask_words,
                   inside && filter < filters);
      }
      mbarrier_arrive_copies(shared + Place::full + turn.stage * mbarrier_bytes);
    }
  }
}

// Extracts a filter's 64 mask bits from bit `shift` of its words on.
__device__ inline void filter_bits(uint32_t (&bits)[2], const uint32_t* words, int shift) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    bits[i] = static_cast<uint32_t>((static_cast<uint64_t>(words[i + 1]) << 32 | words[i]) >> shift);
  }
}

// Multiplies this warpgroup's filters by both halves of pixels for one step of K; the products are done at its return.
template <class T, Mode mode>
__device__ void multiply(float (&sums)[2][64], uint32_t filters, uint32_t pixels, const uint32_t* words, int shift) {
  const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 % 4 * 16;
  uint32_t a[2][4][4];
#pragma unroll
  for (int k16 = 0; k16 < 4; ++k16) {
    ldmatrix_x4(a[0][k16], filters + swizzled_128(warp_row + lane % 16, k16 * 2 + lane / 16));
  }
  if constexpr (mode != Mode::unmasked) {
    // As in dual_conv_sm80.cuh: the bit of a value becomes the sign of a byte, which prmt spreads over 16 bits.
    uint32_t bits[2][2];
#pragma unroll
    for (int i = 0; i < 2; ++i) filter_bits(bits[i], words + (warp_row + i * 8 + lane / 4) * filter_words, shift);
#pragma unroll
    for (int k16 = 0; k16 < 4; ++k16) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint32_t word = bits[i % 2][k16 / 2], byte = k16 % 2 * 2 + i / 2;
        const uint32_t lower = word << (7 - lane % 4 * 2), upper = word << (6 - lane % 4 * 2);
        a[1][k16][i] = a[0][k16][i] & prmt(lower, upper, 0xcc88u + byte * 0x1111u);
      }
    }
  }
  constexpr int masked = mode == Mode::unmasked ? 0 : 1;
  constexpr int second = (Room<mode>::sources - 1) * pixel_bytes;
  hold_registers(sums);
  hold_registers(a[0]);
  hold_registers(a[masked]);
  wgmma_fence();
#pragma unroll
  for (int k16 = 0; k16 < 4; ++k16) {
    wgmma_m64n128k16<T>(sums[0], a[0][k16], swizzled_descriptor(pixels, k16));
    wgmma_m64n128k16<T>(sums[1], a[masked][k16], swizzled_descriptor(pixels + second, k16));
  }
  wgmma_commit();
  wgmma_wait<0>();
  hold_registers(sums);
  hold_registers(a[0]);
  hold_registers(a[masked]);
}

constexpr int parts = tile_pixels / staged_pixels;  // of a half, staged one after the other

// Writes part number `part` of the sums to staged[pixel][filter]. Registers have no index: each part has its own code.
template <int place = 0>
__device__ void stage_sums(const float (&sums)[2][64], int part, float* staged) {
  if (part != place) {
    if constexpr (place + 1 < 2 * parts) stage_sums<place + 1>(sums, part, staged);
    return;
  }
  const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 % 4 * 16;
  constexpr int count = 64 / parts;
#pragma unroll
  for (int i = 0; i < count; ++i) {
    const int pixel = i / 4 * 8 + lane % 4 * 2 + i % 2, filter = warp_row + i % 4 / 2 * 8 + lane / 4;
    staged[pixel * staged_floats + filter] = sums[place / parts][place % parts * count + i];
  }
}

// Turns this warpgroup's sums of one half of a tile into outputs.
template <class T>
__device__ void finish(const Conv& p,
                       const float (&sums)[2][64],
                       int half,
                       int branch,
                       int first_channel,
                       int first_pixel,
                       float* staged,
                       int group) {
  constexpr int chunks = group_channels / 8;
  static_assert(staged_pixels == group_threads / chunks, "a thread finishes one pixel of a part");
  const int chunk = threadIdx.x % chunks, row = threadIdx.x % group_threads / chunks;
  const int channel = first_channel + chunk * 8, count = max_of(0, min_of(8, p.out_c - channel));
  named_barrier(1 + group, group_threads);  // the shifts of the half before have been read
  const TapShift shift = TapShift::copied<group_channels, group_threads>(
      p, branch, first_channel, p.out_c - first_channel, staged + staged_pixels * staged_floats);
  named_barrier(1 + group, group_threads);
  const Epilogue<T> epilogue(p, branch, channel, count, p.out_c % 8 == 0, shift);
  const int end = min_of(first_pixel + tile_pixels, p.pixels);
  uint4 next = epilogue.fetch_residual(first_pixel + row, end);
#pragma unroll 1
  for (int part = 0; part < parts; ++part) {
    const int pixel = first_pixel + part * staged_pixels + row;
    const uint4 residual = next;
    next = epilogue.fetch_residual(pixel + staged_pixels, end);
    named_barrier(1 + group, group_threads);
    stage_sums(sums, half * parts + part, staged);
    named_barrier(1 + group, group_threads);
    if (count > 0 && pixel < end) {
      float values[8];
      load_8(values, staged + row * staged_floats + chunk * 8, 8, true);
      epilogue.finish(values, pixel, residual);
    }
  }
}

// Computes one warpgroup's filters of every tile of the block; run by that warpgroup.
template <class T, Mode mode>
__device__ void consume(const Conv& p, const Tiles& tiles, unsigned char* shared, int group) {
  using Place = Room<mode>;
  const uint32_t base = shared_address(shared);
  const int steps = copy_steps(p);
  auto* staged = reinterpret_cast<float*>(shared + Place::staging + group * staging_bytes);
  Turn turn;
  for (int tile = blockIdx.x; tile < tiles.count; tile += gridDim.x) {
    float sums[2][64] = {};
    CopyStep step;
    for (int i = 0; i < steps; ++i, step.next(p), turn.next()) {
      const uint32_t stage = base + turn.stage * Place::copied;
      const auto* words = reinterpret_cast<const uint32_t*>(shared + Place::masks + turn.stage * Place::stage_masks) +
                          group * group_channels * filter_words;
      mbarrier_wait(base + Place::full + turn.stage * mbarrier_bytes, turn.parity);
      multiply<T, mode>(sums, stage + group * group_channels * copy_row_bytes, stage + weight_bytes, words,
                        step.k(p) % 32);
      __syncwarp();  // every lane has read the stage
      if (threadIdx.x % 32 == 0) mbarrier_arrive(base + Place::empty + turn.stage * mbarrier_bytes);
    }
#pragma unroll 1
    for (int half = 0; half < 2; ++half) {
      finish<T>(p, sums, half, mode == Mode::unmasked ? 0 : half, tiles.channel(tile) + group * group_channels,
                tiles.pixel(tile, mode, half), staged, group);
    }
  }
}

template <class T, Mode mode>
__global__ void __launch_bounds__(threads, 1) dual_conv_sm90(const __grid_constant__ Conv p,
                                                             const __grid_constant__ Tiles tiles,
                                                             const __grid_constant__ TensorMap src,
                                                             const __grid_constant__ TensorMap weight) {
  using Place = Room<mode>;
  unsigned char* shared = shared_memory();
  shared += (1024 - shared_address(shared) % 1024) % 1024;
  const uint32_t base = shared_address(shared);
  if (threadIdx.x == 0) {
    for (int i = 0; i < stages; ++i) {
      // To fill a stage, one lane arrives for the copied bytes and each thread that copies mask words for these. Each
      // warp that multiplies arrives to free it.
      mbarrier_init(base + Place::full + i * mbarrier_bytes, mode == Mode::unmasked ? 1 : 1 + mask_threads);
      mbarrier_init(base + Place::empty + i * mbarrier_bytes, groups * 4);
    }
    mbarrier_init_fence();
  }
  __syncthreads();
  const int group = threadIdx.x / group_threads;
  if (group == groups) {
    decrease_registers<40>();
    if (threadIdx.x < groups * group_threads + 32) {
      copy_factors<mode>(p, tiles, src, weight, base);
    } else if constexpr (mode != Mode::unmasked) {
      copy_masks<mode>(p, tiles, base);
    }
  } else {
    increase_registers<232>();
    consume<T, mode>(p, tiles, shared, group);
  }
}

template <class T, Mode mode>
cudaError_t launch_mode(const Conv& p, int multiprocessors, cudaStream_t stream) {
  TensorMap src, weight;
  if (const auto status = encode<T>(src, im2col_map(p, tile_pixels)); status != cudaSuccess) return status;
  if (const auto status = encode<T>(weight, weight_map(p, tile_channels)); status != cudaSuccess) return status;
  const Tiles tiles(p);
  return launch(dual_conv_sm90<T, mode>, min_of(tiles.count, multiprocessors), threads, Room<mode>::bytes, stream, p,
                tiles, src, weight);
}

template <class T>
cudaError_t launch_product(const Conv& p, int multiprocessors, cudaStream_t stream) {
  switch (p.mode) {
    case Mode::unmasked:
      return launch_mode<T, Mode::unmasked>(p, multiprocessors, stream);
    case Mode::masked_shared:
      return launch_mode<T, Mode::masked_shared>(p, multiprocessors, stream);
    case Mode::masked_paired:
      return launch_mode<T, Mode::masked_paired>(p, multiprocessors, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace
}  // namespace prefiqs::cuda
