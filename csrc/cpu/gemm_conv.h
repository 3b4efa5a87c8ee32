// Implicit GEMM, for any convolution: dst[pixel, co] = sum over k of im2col(src)[pixel, k] * weight[co, k].
//
// Layout: k = (r, s, c); a panel of filters is [k][2 vectors of co], a copied tile of pixels [k / lanes][pixel][lanes].
// In fast memory: a block of panels, packed once and masked in place after the dense branch; one tile of pixels; the
// sums of some tiles, where there are several blocks of k. Bfloat16 numbers are widened when they are packed or copied.
// Loop: for each block of filters, for each block of k: pack; for each branch: mask; for each tile of `tile_pixels`
// pixels: use its inputs in place if they are evenly spaced float32, else copy them; for each panel: sum in registers,
// finish. A sum is one chain in the order of k within a block of k; then the blocks' sums are added. So no tiling,
// batch or number of threads changes a bit.
#pragma once
#include <cstring>

#include "cpu/epilogue.h"
#include "cpu/heuristics.h"
#include "cpu/kernels.h"
#include "cpu/panel.h"

namespace prefiqs {
namespace {

struct Plan {
  int64_t k_block, k_blocks;
  int64_t panels_per_block, out_blocks;  // of the output channels of one group
  int64_t tiles;                         // of one branch
  int64_t tiles_at_once;                 // whose sums are kept from one block of k to the next
  bool both;                             // both branches read the same source, so they share its tiles

  explicit Plan(const ConvParams& p) {
    k_blocks = ceil_div(p.depth(), heuristics::gemm_k_block);
    // A multiple of 32, so that every block starts on a mask word.
    k_block = k_blocks == 1 ? p.depth() : ceil_div(ceil_div(p.depth(), k_blocks), 32) * 32;
    k_blocks = ceil_div(p.depth(), k_block);
    const int64_t panels = ceil_div(p.group_out_c(), panel_width);
    both = p.src_shared && p.branches == 2;
    const int64_t fitting = max_of(1, heuristics::gemm_panel_floats / ((both ? 2 : 1) * k_block * panel_width));
    out_blocks = ceil_div(panels, fitting);
    panels_per_block = ceil_div(panels, out_blocks);
    out_blocks = ceil_div(panels, panels_per_block);
    tiles = ceil_div(p.pixels(), tile_pixels);
    tiles_at_once = k_blocks == 1 ? tiles : max_of(1, heuristics::gemm_sum_floats / (p.branches * tile_sums()));
  }

  int64_t tile_sums() const { return panels_per_block * panel_width * tile_pixels; }
};

struct Tile {
  int64_t count;                // how many pixels it has; the other places repeat the last one
  int64_t image[tile_pixels];   // offset of the image in src
  int64_t in_row[tile_pixels];  // of tap (0, 0); may lie outside
  int64_t in_col[tile_pixels];
  int64_t dst[tile_pixels];   // offset of the pixel in dst and residual
  int64_t bias[tile_pixels];  // offset of its class in the bias table

  Tile(const ConvParams& p, int64_t index) {
    const int64_t first = index * tile_pixels;
    count = min_of(tile_pixels, p.pixels() - first);
    int64_t col = first % p.out_w, row = first / p.out_w % p.out_h, img = first / p.out_w / p.out_h;
    for (int m = 0; m < tile_pixels; ++m) {
      image[m] = img * p.in_plane();
      in_row[m] = row * p.stride_h - p.pad_h;
      in_col[m] = col * p.stride_w - p.pad_w;
      dst[m] = (first + min_of(m, count - 1)) * p.out_c;
      bias[m] = (p.row_class[row] * p.col_classes + p.col_class[col]) * p.out_c;
      if (m + 1 >= count) continue;
      if (++col == p.out_w) {
        col = 0;
        if (++row == p.out_h) {
          row = 0;
          ++img;
        }
      }
    }
  }
};

// Values of k whose inputs lie side by side in src: a kernel row, or one tap if the taps of a row do not touch.
struct Run {
  int64_t row, col;  // of the first tap, from the pixel's corner
  int64_t channel;   // of the first tap
  int64_t length;
};

// The calling thread's memory for one block of filters.
struct Workspace {
  float* panels;  // of one branch after the other, or of both if they read the same tiles
  int64_t branch_floats;
  float* tile;
  float* sums;  // [branch][tile][panel][pixel][panel_width], if there are several blocks of k
  Run* runs;
  TileInputs* inputs;  // one for each run

  Workspace(const ConvParams& p, const Plan& plan, int64_t tiles) {
    branch_floats = plan.panels_per_block * plan.k_block * panel_width;
    const int64_t panel_floats = (plan.both ? 2 : 1) * branch_floats;
    const int64_t tile_floats = ceil_div(plan.k_block, lanes) * tile_step;
    const int64_t sum_floats = plan.k_blocks == 1 ? 0 : p.branches * tiles * plan.tile_sums();
    const int64_t most_runs = min_of(p.taps(), plan.k_block / p.group_in_c() + 2);
    const int64_t run_floats = most_runs * static_cast<int64_t>((sizeof(Run) + sizeof(TileInputs)) / sizeof(float));
    panels = thread_workspace(static_cast<size_t>(panel_floats + tile_floats + sum_floats + run_floats));
    tile = panels + panel_floats;
    sums = tile + tile_floats;
    runs = reinterpret_cast<Run*>(sums + sum_floats);
    inputs = reinterpret_cast<TileInputs*>(runs + most_runs);
  }
};

// Writes the runs of k in [k_begin, k_end), in order; returns how many there are.
int64_t split_runs(const ConvParams& p, int64_t k_begin, int64_t k_end, Run* runs) {
  const int64_t channels = p.group_in_c();
  const bool taps_touch = p.dilation_w == 1 && p.groups == 1;
  const int64_t longest = taps_touch ? p.kernel_w * channels : channels;
  int64_t count = 0;
  for (int64_t k = k_begin; k < k_end; ++count) {
    const int64_t tap = k / channels;
    runs[count] = {tap / p.kernel_w * p.dilation_h, tap % p.kernel_w * p.dilation_w, k % channels,
                   min_of(longest - k % longest, k_end - k)};
    k += runs[count].length;
  }
  return count;
}

// Copies numbers [begin, end) of a run, or zeros, to their places in a tile's pixel; the run's first number is that of
// `k`. Meanwhile the numbers that lie `ahead` of them are fetched from slow memory.
template <bool zeros, class Src>
void place_run(const Src* src, int64_t begin, int64_t end, int64_t k, int64_t ahead, float* dst) {
  int64_t lane = (k + begin) % lanes;
  dst += (k + begin) / lanes * tile_step;
  for (; lane == 0 && begin + lanes <= end; begin += lanes, dst += tile_step) {
    if (!zeros) __builtin_prefetch(src + begin + ahead);
    (zeros ? Vec::zero() : Vec::load(src + begin)).store(dst);
  }
  for (; begin < end; lane = 0, dst += tile_step) {
    const int64_t n = min_of(lanes - lane, end - begin);
    (zeros ? Vec::zero() : Vec::load(src + begin, n)).store(dst + lane, n);
    begin += n;
  }
}

template <class Src>
void im2col(const ConvParams& p, const Tile& tile, const Src* src, const Run* runs, int64_t run_count, float* dst) {
  const int64_t channels = p.group_in_c(), ahead = tile_pixels * p.stride_w * p.in_c;  // the next tile, in one row
  int64_t k = 0;
  for (const Run* run = runs; run < runs + run_count; k += run->length, ++run) {
    for (int m = 0; m < tile_pixels; ++m) {
      const int64_t row = tile.in_row[m] + run->row, col = tile.in_col[m] + run->col;
      float* pixel = dst + m * lanes;
      if (row < 0 || row >= p.in_h) {
        place_run<true, Src>(nullptr, 0, run->length, k, 0, pixel);
        continue;
      }
      const Src* line = src + tile.image[m] + (row * p.in_w + col) * p.in_c + run->channel;
      // The run lies within [begin, end) of the image's row, the rest on padding.
      const int64_t begin = min_of(run->length, max_of(0, -col * channels - run->channel));
      const int64_t end = max_of(begin, min_of(run->length, (p.in_w - col) * channels - run->channel));
      if (begin > 0) place_run<true, Src>(nullptr, 0, begin, k, 0, pixel);
      place_run<false>(line, begin, end, k, ahead, pixel);
      if (end < run->length) place_run<true, Src>(nullptr, end, run->length, k, 0, pixel);
    }
  }
}

// Finds the inputs of a tile in src, one for each run, if they can be used without a copy: if the pixels are evenly
// spaced and no run meets padding. Returns whether that is so.
bool inputs_in_place(
    const ConvParams& p, const Tile& tile, const float* src, const Run* runs, int64_t run_count, TileInputs* inputs) {
  constexpr int last = tile_pixels - 1;
  const int64_t step = p.stride_w * p.in_c;
  if (tile.count < tile_pixels || step > heuristics::gemm_widest_step) return false;
  const bool one_row = tile.image[0] == tile.image[last] && tile.in_row[0] == tile.in_row[last];
  const bool side_by_side = p.taps() == 1 && p.stride_h == 1 && p.stride_w == 1 && p.pad_h == 0 && p.pad_w == 0;
  if (!one_row && !side_by_side) return false;
  for (int64_t i = 0; i < run_count; ++i) {
    const Run& run = runs[i];
    const int64_t row = tile.in_row[0] + run.row, col = tile.in_col[0] + run.col;
    const int64_t run_end = (tile.in_col[last] + run.col) * p.group_in_c() + run.channel + run.length;
    if (row < 0 || row >= p.in_h || col < 0 || run_end > p.in_w * p.group_in_c()) return false;
    inputs[i] = {src + tile.image[0] + (row * p.in_w + col) * p.in_c + run.channel, run.length, lanes, step};
  }
  return true;
}

bool inputs_in_place(const ConvParams&, const Tile&, const BFloat16*, const Run*, int64_t, TileInputs*) {
  return false;
}

struct PanelTask {
  const TileInputs* inputs;
  int64_t input_count;
  int64_t ahead;  // floats to the inputs of the next tile, which are fetched meanwhile; 0: do not fetch
  const float* panel;
  float* sums;  // of the earlier blocks of k, [pixel][panel_width]
  const Tile* tile;
  int64_t branch;
  int64_t channel;   // the panel's first
  int64_t filters;   // in the panel: 1 .. panel_width
  bool first, last;  // of the k blocks
};

// Adds what earlier blocks of k left, and finishes or keeps the sums. Pixels past the tile's last one repeat it, so
// storing them is harmless. `full`: the panel has all its filters.
template <class Weight, class Product, bool full>
__attribute__((always_inline)) inline void finish_panel(const ConvParams& p,
                                                        const PanelTask& t,
                                                        Sums<tile_pixels, Product>& sums) {
#pragma GCC unroll 2
  for (int v = 0; v < 2; ++v) {
    const int64_t count = t.filters - v * lanes;
    if (!full && count <= 0) return;
    const Epilogue<Weight, full> epilogue(p, t.branch, t.channel + v * lanes, count);
    float* kept = t.sums + v * lanes;
#pragma GCC unroll 16
    for (int m = 0; m < tile_pixels; ++m) {
      if (!t.first) sums.acc[m][v] = sums.acc[m][v] + Vec::load(kept + m * panel_width);
      if (t.last) {
        epilogue.finish(sums.acc[m][v], t.tile->dst[m], t.tile->bias[m]);
      } else {
        sums.acc[m][v].store(kept + m * panel_width);
      }
    }
  }
}

template <class Weight, class Product>
void run_panel(const ConvParams& p, const PanelTask& t) {
  for (int m = 0; t.last && m < tile_pixels; ++m) {
    for (int v = 0; v < 2; ++v) {
      __builtin_prefetch(p.dst_address(t.branch, t.tile->dst[m] + t.channel + v * lanes), 1);
    }
  }
  Sums<tile_pixels, Product> sums;
  const float* panel = t.panel;
  for (int64_t i = 0; i < t.input_count; ++i) panel = sums.add(t.inputs[i], panel, t.ahead);
  if (t.filters == panel_width) {
    finish_panel<Weight, Product, true>(p, t, sums);
  } else {
    finish_panel<Weight, Product, false>(p, t, sums);
  }
}

// Multiplies one tile by the panels of filters [begin, end) of one branch.
template <class Weight, class Product>
void run_tile(const ConvParams& p, PanelTask task, int64_t panel_floats, int64_t begin, int64_t end) {
  for (task.channel = begin; task.channel < end; task.channel += panel_width) {
    task.filters = min_of(panel_width, end - task.channel);
    run_panel<Weight, Product>(p, task);
    task.panel += panel_floats;
    task.sums += tile_pixels * panel_width;
    task.ahead = 0;
  }
}

// Runs tiles [tile_begin, tile_end) of both branches for one block of filters. `block` counts the blocks of all groups.
// Src and Unit: what src and the weights are read as.
template <class Src, class Unit, class Weight, class Product>
void run_block(const ConvParams& p, const Plan& plan, int64_t block, int64_t tile_begin, int64_t tile_end) {
  const int64_t tiles = tile_end - tile_begin;
  const Workspace ws(p, plan, tiles);
  const int64_t group = block / plan.out_blocks;
  const int64_t group_begin = group * p.group_out_c();
  const int64_t begin = group_begin + block % plan.out_blocks * plan.panels_per_block * panel_width;
  const int64_t end = min_of(begin + plan.panels_per_block * panel_width, group_begin + p.group_out_c());
  for (int64_t k_begin = 0; k_begin < p.depth(); k_begin += plan.k_block) {
    const int64_t k_end = min_of(k_begin + plan.k_block, p.depth()), k_count = k_end - k_begin;
    const int64_t run_count = split_runs(p, k_begin, k_end, ws.runs);
    const TileInputs packed = packed_tile(ws.tile, k_count);
    for (int64_t source = 0; source < (plan.both ? 1 : p.branches); ++source) {
      float* panel = ws.panels;
      for (int64_t c = begin; c < end; c += panel_width, panel += k_count * panel_width) {
        const int64_t filters = min_of(panel_width, end - c);
        float* pruned = plan.both ? panel + ws.branch_floats : panel;
        if (source == 0) pack_panel(p.filter<Unit>(c) + k_begin, p.depth(), filters, k_count, panel);
        if (plan.both) std::memcpy(pruned, panel, static_cast<size_t>(k_count * panel_width) * sizeof(float));
        if (p.mask != nullptr && (plan.both || source == 1)) {
          const uint32_t* mask = p.mask + c * p.mask_words + k_begin * Product::numbers / 32;
          prune_panel<Product>(mask, p.mask_words, filters, k_count, pruned);
        }
      }
      const Src* src = p.branch_src<Src>(source) + group * p.group_in_c();
      for (int64_t index = tile_begin; index < tile_end; ++index) {
        const Tile tile(p, index);
        PanelTask task{};
        if (inputs_in_place(p, tile, src, ws.runs, run_count, ws.inputs)) {
          task.inputs = ws.inputs;
          task.input_count = run_count;
          task.ahead = tile_pixels * ws.inputs[0].pixel_step;
        } else {
          im2col(p, tile, src, ws.runs, run_count, ws.tile);
          task.inputs = &packed;
          task.input_count = 1;
        }
        task.tile = &tile;
        task.first = k_begin == 0;
        task.last = k_end == p.depth();
        for (int64_t branch = source; branch < (plan.both ? p.branches : source + 1); ++branch) {
          task.panel = ws.panels + (branch - source) * ws.branch_floats;
          task.sums = ws.sums + (branch * tiles + index - tile_begin) * plan.tile_sums();
          task.branch = branch;
          run_tile<Weight, Product>(p, task, k_count * panel_width, begin, end);
        }
      }
    }
  }
}

[[maybe_unused]] bool gemm_fits(const ConvParams&) { return true; }

int64_t gemm_work_items(const ConvParams& p) {
  const Plan plan(p);
  return p.groups * plan.out_blocks * plan.tiles;
}

// An item of work is one tile of one block of filters. Tiles vary fastest, so a thread packs a block once for many.
template <class Src, class Unit, class Weight, class Product>
void run_items(const ConvParams& p, int64_t begin, int64_t end) {
  const Plan plan(p);
  while (begin < end) {
    const int64_t tile_begin = begin % plan.tiles;
    const int64_t tile_end = min_of(min_of(plan.tiles, tile_begin + end - begin), tile_begin + plan.tiles_at_once);
    run_block<Src, Unit, Weight, Product>(p, plan, begin / plan.tiles, tile_begin, tile_end);
    begin += tile_end - tile_begin;
  }
}

[[maybe_unused]] void gemm_run(const ConvParams& p, int64_t begin, int64_t end) {
  with_formats(p, [&]<class Src, class Weight>() { run_items<Src, Weight, Weight, Float32Product>(p, begin, end); });
}

}  // namespace
}  // namespace prefiqs
