// The sizes that the CPU kernels choose by: which algorithm a layer gets, and how its work is cut. The choices
// depend on the layer's shape alone. Sizes marked (bits) also decide in which order a sum is added, and so its last
// bits.
//
// They were chosen on two cores of an AMD EPYC, Zen 4 (AVX-512, 1 MiB of second-level cache a core) or Zen 3 (AVX2, 512
// KiB), with float32 and torch 2.13.0. Each block names the machine and the day; docs/performance.md has the figures.
// Most were measured together with the step that brought them, not one by one. None was re-measured since.
#pragma once
#include <cstdint>

namespace prefiqs::heuristics {

constexpr int64_t cache_line = 16;  // floats

// GEMM: Zen 4, 2026-11-23. Measured one by one: blocks 512, 768 or 1024 deep are no faster (Zen 4); blocks 256 deep or
// half the panels are 3 % faster on one layer and no faster on the others (Zen 3).
constexpr int64_t gemm_k_block = 384;  // most k of a block, so that a tile stays in first-level cache (bits)
constexpr int64_t gemm_panel_floats = 128 * 1024;  // half of a 1 MiB second-level cache; the pixels need the rest
constexpr int64_t gemm_sum_floats = 512 * 1024;    // of tiles whose sums wait for the next block of k
constexpr int64_t gemm_widest_step = 256;  // floats between pixels read in place; wider steps crowd few cache sets

// Winograd: Zen 4, 2026-11-23; stride 2: Zen 4, 2026-11-24. Measured one by one: smaller blocks of tiles are no faster,
// and at stride 2 layers of 14x14 and 28x28, whose tiles are less filled, are as fast by GEMM.
constexpr int64_t winograd_least_channels = 32;        // fewer do not pay for the transforms (bits)
constexpr int64_t winograd_filled_tenths = 5;          // of the tiles' pixels, least, at stride 1 (bits)
constexpr int64_t winograd_filled_tenths_stride2 = 9;  // stride 2 saves fewer multiplications (bits)
constexpr int64_t winograd_most_tiles = 128;        // in a block; from there on a panel's transform costs few per cent
constexpr int64_t winograd_pixel_floats = 2 << 20;  // of one branch's transformed pixels in a block
constexpr int64_t winograd_steps_ahead = 4;         // of a tile: how early pixels are fetched from third-level cache

// Large linear layers: Zen 3, 2026-11-24; the least size: Zen 4, 2026-11-23.
constexpr int64_t linear_least_weights = 256 * 1024;  // 1 MiB; fewer stay in second-level cache anyway (bits)
constexpr int64_t linear_k_block = 512;               // of a few rows: 12 to 24 KB (bits)
constexpr int64_t linear_filter_block = 64;           // 128 KB of weights, and as much of masked ones
constexpr int64_t linear_most_rows = 256;             // whose sums are kept; beyond, weights are masked once more

// Depthwise: Zen 3, 2026-11-24; pixels at a time: 2026-11-23, machine not recorded. The largest ring is a bound and was
// not measured.
constexpr int depthwise_most_pixels = 8;              // at a time: their sums stay in registers
constexpr int64_t depthwise_ring_floats = 24 * 1024;  // with fewer, src would be read in shorter pieces
constexpr int64_t depthwise_most_ring = 1 << 20;      // floats for one cache line of channels: beyond any cache (bits)

// AMX: chosen by the sizes of the caches of an Intel Xeon with AMX (2 MiB of second-level cache a core); not measured.
constexpr int64_t amx_least_channels = 16;              // with fewer, pixels are unfolded (bits)
constexpr int64_t amx_panel_bytes = 768 * 1024;         // of packed filters
constexpr int64_t amx_pixel_numbers = 256 * 1024;       // 512 KiB of pixels in a strip
constexpr int64_t amx_least_items = 8;                  // of work, so that threads can share a small batch
constexpr int64_t amx_least_positions = 256;            // of a strip: fewer do not pay for reading the panels
constexpr int64_t amx_linear_steps = 64;                // of 32 k in a block
constexpr int64_t amx_linear_ahead = 512;               // numbers: how early weights are fetched from memory
constexpr int64_t amx_most_numbers = 32 * 1024 * 1024;  // a bound for odd layers: beyond any cache (bits)

}  // namespace prefiqs::heuristics
