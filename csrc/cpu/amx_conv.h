// Convolution by AMX tiles, an implicit GEMM: dst[pixel, co] = sum over k of src[pixel, k] * weight[co, k].
//
// Layout: pixels X [chunk of 32 channels][phase][row][col][image][32] with padding, so that a tap is a constant step
// and 16 positions in a row are a tile (amx_pixels.h); filters [panel of 32][step][2][16 pairs of k][16 filters][2].
// In fast memory: X of a strip of output rows; a block of panels, packed once and masked in place after the dense
// branch; sums of 32 positions by 32 filters in four tiles.
// Loop: for each block of panels: pack; for each branch: mask; for each strip: fill X; for each 32 positions, for each
// panel: for each step of 32 k: two tiles of X, two of the panel, four products; finish.
// A sum is one chain in the order of the steps, so no tiling, batch or number of threads changes a bit.
#pragma once
#include "cpu/amx_pixels.h"
#include "cpu/amx_tiles.h"
#include "cpu/epilogue.h"
#include "cpu/heuristics.h"
#include "cpu/kernels.h"

namespace prefiqs {
namespace {

constexpr int64_t panel_filters = 32, step_numbers = panel_filters * tile_k;

struct AmxPlan {
  AmxPixels pixels;
  int64_t strips;  // of all groups of images
  int64_t panels, block_panels, blocks, most_panels;
  bool both;  // both branches read the same source, so they share X

  explicit AmxPlan(const ConvParams& p) : pixels(p), both(p.src_shared && p.branches == 2) {
    strips = pixels.groups * pixels.group_strips;
    panels = ceil_div(p.out_c, panel_filters);
    const int64_t panel_bytes = (both ? 2 : 1) * pixels.steps * step_numbers * 2;
    most_panels = min_of(panels, max_of(1, heuristics::amx_panel_bytes / panel_bytes));
    // Where there are few strips, small blocks give every thread some work.
    const int64_t wanted = ceil_div(heuristics::amx_least_items, strips);
    blocks = max_of(ceil_div(panels, most_panels), min_of(panels, wanted));
    block_panels = ceil_div(panels, blocks);
    blocks = ceil_div(panels, block_panels);
  }
};

// The calling thread's memory.
struct AmxWorkspace {
  BFloat16* panels;  // of one branch after the other, or of both if they share X
  BFloat16* pixels;
  float* sums;  // [32 positions][32 filters]
  AmxStep* steps;
  AmxOutput* outputs;  // of a strip
  int64_t branch_numbers;

  AmxWorkspace(const AmxPlan& plan, int64_t panel_count) {
    branch_numbers = panel_count * plan.pixels.steps * step_numbers;
    const int64_t panel_numbers = (plan.both ? 2 : 1) * branch_numbers;
    const int64_t sum_floats = 2 * tile_rows * panel_filters;
    const int64_t step_floats = plan.pixels.steps * static_cast<int64_t>(sizeof(AmxStep) / sizeof(float));
    const int64_t output_floats = plan.pixels.most_outputs() * static_cast<int64_t>(sizeof(AmxOutput) / sizeof(float));
    float* memory = thread_workspace(
        static_cast<size_t>((panel_numbers + plan.pixels.numbers()) / 2 + sum_floats + step_floats + output_floats));
    panels = reinterpret_cast<BFloat16*>(memory);
    pixels = panels + panel_numbers;
    sums = reinterpret_cast<float*>(pixels + plan.pixels.numbers());
    steps = reinterpret_cast<AmxStep*>(sums + sum_floats);
    outputs = reinterpret_cast<AmxOutput*>(steps + plan.pixels.steps);
  }
};

// Packs `count` weights of 16 filters as [pair of k][filter][2]; what is missing of a tile becomes zeros.
void pack_tile(const BFloat16* weight, int64_t depth, int64_t filters, int64_t count, BFloat16* tile) {
  constexpr int64_t lanes = Vec::width;
  alignas(64) float rows[16][16] = {};  // each number is a pair, which is moved and never computed with
  for (int64_t j = 0; j < min_of(filters, 16); ++j) {
    __builtin_prefetch(weight + j * depth + 4 * tile_k);
    copy_step(weight + j * depth, count, reinterpret_cast<BFloat16*>(rows[j]));
  }
  float* pairs = reinterpret_cast<float*>(tile);
  for (int64_t row = 0; row < 16; row += lanes) {
    for (int64_t col = 0; col < 16; col += lanes) {
      Vec square[lanes];
      for (int64_t i = 0; i < lanes; ++i) square[i] = Vec::load(&rows[row + i][col]);
      Vec::transpose(square);
      for (int64_t i = 0; i < lanes; ++i) square[i].store(pairs + (col + i) * 16 + row);
    }
  }
}

// 32 bits of a filter's mask from bit k on; those past the last word are 0.
uint32_t mask_bits(const uint32_t* words, int64_t count, int64_t k) {
  const int64_t word = k / 32, shift = k % 32;
  const uint64_t next = word + 1 < count ? words[word + 1] : 0;
  return static_cast<uint32_t>(((next << 32) | words[word]) >> shift);
}

// Sets the pruned weights of a packed tile to zero.
void prune_tile(const ConvParams& p, int64_t channel, int64_t k, BFloat16* tile) {
  uint32_t bits[16];
  for (int64_t j = 0; j < 16; ++j) {
    bits[j] = channel + j < p.out_c ? mask_bits(p.mask + (channel + j) * p.mask_words, p.mask_words, k) : 0;
  }
  for (int64_t pair = 0; pair < 16; ++pair, tile += 32) {
    uint32_t row[16];
    std::memcpy(row, tile, sizeof row);
    for (int64_t j = 0; j < 16; ++j) row[j] &= pair_mask(bits[j] >> (2 * pair));
    std::memcpy(tile, row, sizeof row);
  }
}

void pack_panel(const ConvParams& p, const AmxPlan& plan, const AmxStep* steps, int64_t channel, BFloat16* panel) {
  for (int64_t i = 0; i < plan.pixels.steps; ++i) {
    for (int64_t c = channel; c < channel + panel_filters; c += 16, panel += step_numbers / 2) {
      pack_tile(p.filter<BFloat16>(c) + steps[i].k, p.depth(), max_of(0, p.out_c - c), steps[i].count, panel);
    }
  }
}

void prune_panel(const ConvParams& p, const AmxPlan& plan, const AmxStep* steps, int64_t channel, BFloat16* panel) {
  for (int64_t i = 0; i < plan.pixels.steps; ++i) {
    for (int64_t c = channel; c < channel + panel_filters; c += 16, panel += step_numbers / 2) {
      prune_tile(p, c, steps[i].k, panel);
    }
  }
}

// sums[16 tiles positions][32 filters] of one or two tiles of pixels by a panel.
template <int tiles>
void multiply_panel(const AmxWorkspace& ws, int64_t steps, const AmxOutput* outputs, const BFloat16* panel) {
  const char* first = reinterpret_cast<const char*>(ws.pixels) + outputs[0].offset;
  const char* second = reinterpret_cast<const char*>(ws.pixels) + outputs[tiles - 1].offset;
  Tiles::zero<0>();
  Tiles::zero<1>();
  Tiles::zero<2>();
  Tiles::zero<3>();
  for (int64_t i = 0; i < steps; ++i, panel += step_numbers) {
    Tiles::load<4>(first + ws.steps[i].offset, tile_row_bytes);
    Tiles::load<6>(panel, tile_row_bytes);
    Tiles::multiply<0, 4, 6>();
    Tiles::load<7>(panel + step_numbers / 2, tile_row_bytes);
    Tiles::multiply<1, 4, 7>();
    if constexpr (tiles == 2) {
      Tiles::load<5>(second + ws.steps[i].offset, tile_row_bytes);
      Tiles::multiply<2, 5, 6>();
      Tiles::multiply<3, 5, 7>();
    }
  }
  constexpr int64_t row = panel_filters * static_cast<int64_t>(sizeof(float));
  Tiles::store<0>(ws.sums, row);
  Tiles::store<1>(ws.sums + 16, row);
  if constexpr (tiles == 2) {
    Tiles::store<2>(ws.sums + 16 * panel_filters, row);
    Tiles::store<3>(ws.sums + 16 * panel_filters + 16, row);
  }
}

template <bool full>
void finish_vector(
    const ConvParams& p, const AmxOutput& tile, const float* sums, int64_t branch, int64_t channel, int64_t count) {
  const Epilogue<BFloat16, full> epilogue(p, branch, channel, count);
  for (int64_t m = 0; m < tile.count; ++m) {
    epilogue.finish(Vec::load(sums + tile.place[m] * panel_filters), tile.pixel[m], tile.bias[m]);
  }
}

void finish_panel(const ConvParams& p, const AmxOutput& tile, const float* sums, int64_t branch, int64_t channel) {
  for (int64_t v = 0; v < panel_filters; v += Vec::width) {
    const int64_t left = p.out_c - channel - v;
    if (left <= 0) return;
    if (left >= Vec::width) {
      finish_vector<true>(p, tile, sums + v, branch, channel + v, left);
    } else {
      finish_vector<false>(p, tile, sums + v, branch, channel + v, left);
    }
  }
}

// Multiplies one strip by panels [begin, end) of one branch.
void multiply_strip(const ConvParams& p,
                    const AmxPlan& plan,
                    const AmxWorkspace& ws,
                    int64_t output_count,
                    const BFloat16* panels,
                    int64_t branch,
                    int64_t begin,
                    int64_t end) {
  for (int64_t tile = 0; tile < output_count; tile += 2) {
    const int64_t tiles = min_of(2, output_count - tile);
    const AmxOutput* outputs = ws.outputs + tile;
    for (int64_t index = begin; index < end; ++index) {
      const BFloat16* panel = panels + (index - begin) * plan.pixels.steps * step_numbers;
      (tiles == 2 ? multiply_panel<2> : multiply_panel<1>)(ws, plan.pixels.steps, outputs, panel);
      for (int64_t i = 0; i < tiles; ++i) {
        finish_panel(p, outputs[i], ws.sums + i * tile_rows * panel_filters, branch, index * panel_filters);
      }
    }
  }
}

// Runs strips [strip_begin, strip_end) of both branches for panels [begin, end).
template <class Src>
void run_panels(
    const ConvParams& p, const AmxPlan& plan, int64_t begin, int64_t end, int64_t strip_begin, int64_t strip_end) {
  const AmxWorkspace ws(plan, end - begin);
  plan.pixels.list_steps(p, ws.steps);
  [[maybe_unused]] const Tiles tiles;
  for (int64_t source = 0; source < (plan.both ? 1 : p.branches); ++source) {
    BFloat16* panel = ws.panels;
    for (int64_t index = begin; index < end; ++index, panel += plan.pixels.steps * step_numbers) {
      const int64_t channel = index * panel_filters;
      BFloat16* pruned = plan.both ? panel + ws.branch_numbers : panel;
      if (source == 0) pack_panel(p, plan, ws.steps, channel, panel);
      if (plan.both) std::memcpy(pruned, panel, static_cast<size_t>(plan.pixels.steps * step_numbers) * 2);
      if (p.mask != nullptr && (plan.both || source == 1)) prune_panel(p, plan, ws.steps, channel, pruned);
    }
    for (int64_t strip = strip_begin; strip < strip_end; ++strip) {
      plan.pixels.fill(p, p.branch_src<Src>(source), strip, ws.pixels);
      const int64_t outputs = plan.pixels.list_outputs(p, strip, ws.outputs);
      for (int64_t branch = source; branch < (plan.both ? p.branches : source + 1); ++branch) {
        multiply_strip(p, plan, ws, outputs, ws.panels + (branch - source) * ws.branch_numbers, branch, begin, end);
      }
    }
  }
}

// A strip or a filter beyond any cache is left to the general algorithm, which copies less of it at a time.
bool amx_fits(const ConvParams& p) {
  if (p.weight_format != Format::bfloat16 || p.groups != 1 || p.dilation_h != 1 || p.dilation_w != 1) return false;
  ConvParams many = p;
  many.images = tile_rows;  // as many as may lie side by side, so that a row gets this kernel in every batch or in none
  const AmxPixels pixels(many);
  return pixels.numbers() <= heuristics::amx_most_numbers &&
         pixels.steps <= heuristics::amx_most_numbers / step_numbers;
}

int64_t amx_work_items(const ConvParams& p) {
  const AmxPlan plan(p);
  return plan.blocks * plan.strips;
}

// An item of work is one strip by one block of panels. Strips vary fastest, so a thread packs a block once for many; of
// several blocks that need all strips it packs as many as fit, so that it fills X once for them.
void amx_run(const ConvParams& p, int64_t begin, int64_t end) {
  const AmxPlan plan(p);
  while (begin < end) {
    const int64_t block = begin / plan.strips, strip_begin = begin % plan.strips;
    const int64_t strip_end = min_of(plan.strips, strip_begin + end - begin);
    int64_t blocks = 1;
    if (strip_end - strip_begin == plan.strips) {
      blocks = max_of(1, min_of((end - begin) / plan.strips, plan.most_panels / plan.block_panels));
    }
    const int64_t panel_begin = block * plan.block_panels;
    const int64_t panel_end = min_of(plan.panels, panel_begin + blocks * plan.block_panels);
    with_formats(p, [&]<class Src, class Weight>() {
      run_panels<Src>(p, plan, panel_begin, panel_end, strip_begin, strip_end);
    });
    begin += blocks * (strip_end - strip_begin);
  }
}

}  // namespace
}  // namespace prefiqs
