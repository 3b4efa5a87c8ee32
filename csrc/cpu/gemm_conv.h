// Implicit GEMM for any convolution: dst[pixel, co] = sum over k of im2col(src)[pixel, k] * weight[co, k], k = (r, s,
// c).
//
// In fast memory: a block of filters as panels [k][2 vectors of co], at most `panel_budget` floats, packed once. The
// dense branch uses it as it is; then the mask is applied to it where it lies, and the pruned branch uses the same
// floats. Tile loop: for each block of filters, for each block of k: pack; for both branches: for each tile of
// `tile_pixels` pixels: a table of row pointers, one a tap and pixel (padding points at zeros: no im2col copy); for
// each panel: all sums of the tile stay in registers. The sums of several k blocks are added up in dst. Very shallow
// layers (few channels a tap) gather their patch first. Within a k block a sum is one chain of multiply-adds in the
// order of k: no tiling, no batch and no number of threads changes a bit.
#pragma once
#include <cstring>

#include "cpu/kernels.h"
#include "cpu/panel.h"

namespace prefiqs {
namespace {

constexpr int64_t panel_budget = 96 * 1024;  // floats; half of a 1 MiB second-level cache leaves room for the pixels
constexpr int64_t gather_below = 16;         // channels a tap

struct Plan {
  int64_t k_block, k_blocks;
  int64_t panels_per_block, out_blocks;  // blocks of output channels, within one group
  int64_t tiles;                         // of one branch
  bool gather;

  explicit Plan(const ConvParams& p) {
    const int64_t deepest = panel_budget / panel_width / 32 * 32;
    k_blocks = ceil_div(p.depth(), deepest);
    // A multiple of 32, so that every block starts on a mask word.
    k_block = k_blocks == 1 ? p.depth() : ceil_div(ceil_div(p.depth(), k_blocks), 32) * 32;
    k_blocks = ceil_div(p.depth(), k_block);
    const int64_t panels = ceil_div(p.group_out_c(), panel_width);
    const int64_t fitting = max_of(1, panel_budget / (k_block * panel_width));
    out_blocks = ceil_div(panels, fitting);
    panels_per_block = ceil_div(panels, out_blocks);
    out_blocks = ceil_div(panels, panels_per_block);
    tiles = ceil_div(p.pixels(), tile_pixels);
    gather = p.group_in_c() < gather_below && p.taps() > 1;
  }
};

// A run of k within one tap.
struct Segment {
  int64_t tap, channel, length;
};

struct Tile {
  int64_t count;                // pixels in it; the rest repeat the last one and are not stored
  int64_t image[tile_pixels];   // offset of the image in src
  int64_t in_row[tile_pixels];  // of tap (0, 0); may lie outside
  int64_t in_col[tile_pixels];
  int64_t dst[tile_pixels];  // offset of the pixel in dst and residual
  const float* bias[tile_pixels];

  Tile(const ConvParams& p, int64_t index, int64_t branch) {
    const int64_t first = index * tile_pixels;
    count = min_of(tile_pixels, p.pixels() - first);
    int64_t col = first % p.out_w, row = first / p.out_w % p.out_h, img = first / p.out_w / p.out_h;
    for (int m = 0; m < tile_pixels; ++m) {
      image[m] = img * p.in_plane();
      in_row[m] = row * p.stride_h - p.pad_h;
      in_col[m] = col * p.stride_w - p.pad_w;
      dst[m] = (first + min_of(m, count - 1)) * p.out_c;
      bias[m] = p.branch_bias(branch) + (p.row_class[row] * p.col_classes + p.col_class[col]) * p.out_c;
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

  // Where tap (r, s) of pixel m lies in src (its first channel), or null where it falls on padding.
  const float* tap(const ConvParams& p, const float* src, int m, int64_t r, int64_t s) const {
    const int64_t row = in_row[m] + r * p.dilation_h, col = in_col[m] + s * p.dilation_w;
    const bool inside = row >= 0 && row < p.in_h && col >= 0 && col < p.in_w;
    return inside ? src + image[m] + (row * p.in_w + col) * p.in_c : nullptr;
  }
};

// The calling thread's memory for one block of filters.
struct Workspace {
  float* panels;
  float* zeros;        // a tap's channels on padding
  float* patch;        // [tile_pixels][depth], only when gathering
  const float** rows;  // [segments][tile_pixels]
  Segment* segments;

  Workspace(const ConvParams& p, const Plan& plan) {
    const int64_t max_segments = plan.gather ? 1 : min_of(p.taps(), plan.k_block / p.group_in_c() + 2);
    const int64_t panel_floats = plan.panels_per_block * plan.k_block * panel_width;
    const int64_t zero_floats = ceil_div(p.group_in_c(), 16) * 16;
    const int64_t patch_floats = plan.gather ? ceil_div(tile_pixels * p.depth(), 16) * 16 : 0;
    const int64_t row_floats = max_segments * tile_pixels * static_cast<int64_t>(sizeof(float*) / sizeof(float));
    const int64_t segment_floats = max_segments * static_cast<int64_t>(sizeof(Segment) / sizeof(float));
    panels =
        thread_workspace(static_cast<size_t>(panel_floats + zero_floats + patch_floats + row_floats + segment_floats));
    zeros = panels + panel_floats;
    patch = zeros + zero_floats;
    rows = reinterpret_cast<const float**>(patch + patch_floats);
    segments = reinterpret_cast<Segment*>(rows + max_segments * tile_pixels);
    std::memset(zeros, 0, static_cast<size_t>(zero_floats) * sizeof(float));
  }
};

struct PanelTask {
  const Segment* segments;
  int64_t segment_count;
  const float* const* rows;
  const float* panel;
  const Tile* tile;
  float* dst;             // of the branch, at channel 0
  const float* residual;  // likewise, or null
  int64_t channel;        // the panel's first
  int64_t filters;        // in the panel: 1 .. panel_width
  bool first, last;       // of the k blocks
};

void run_panel(const PanelTask& t, const Epilogue& epilogue) {
  const int64_t n0 = min_of(t.filters, lanes), n1 = t.filters - n0;
  Sums<tile_pixels> sums_of_tile;
  const float* weights = t.panel;
  for (int64_t i = 0; i < t.segment_count; ++i) {
    weights = sums_of_tile.add(t.rows + i * tile_pixels, t.segments[i].length, weights);
  }
  auto& acc = sums_of_tile.acc;
#pragma GCC unroll 16
  for (int m = 0; m < tile_pixels; ++m) {
    if (m >= t.tile->count) break;
    const int64_t offset = t.tile->dst[m];
    const float* residual = t.residual == nullptr ? nullptr : t.residual + offset;
    float* sums = t.dst + offset + t.channel;
    if (!t.first) acc[m][0] = acc[m][0] + Vec::load(sums, n0);
    if (t.last) acc[m][0] = epilogue(acc[m][0], t.tile->bias[m], residual, t.channel, n0);
    acc[m][0].store(sums, n0);
    if (n1 == 0) continue;
    if (!t.first) acc[m][1] = acc[m][1] + Vec::load(sums + lanes, n1);
    if (t.last) acc[m][1] = epilogue(acc[m][1], t.tile->bias[m], residual, t.channel + lanes, n1);
    acc[m][1].store(sums + lanes, n1);
  }
}

// The segments of k in [k_begin, k_end), in order.
int64_t split_segments(const ConvParams& p, const Plan& plan, int64_t k_begin, int64_t k_end, Segment* segments) {
  if (plan.gather) {
    segments[0] = {0, k_begin, k_end - k_begin};
    return 1;
  }
  int64_t count = 0;
  for (int64_t k = k_begin; k < k_end; ++count) {
    const int64_t tap = k / p.group_in_c(), channel = k % p.group_in_c();
    segments[count] = {tap, channel, min_of(p.group_in_c() - channel, k_end - k)};
    k += segments[count].length;
  }
  return count;
}

void copy_floats(const float* src, int64_t count, float* dst) {
  for (int64_t i = 0; i < count; i += lanes) {
    const int64_t n = min_of(lanes, count - i);
    Vec::load(src + i, n).store(dst + i, n);
  }
}

// The inputs of one pixel's sum in the order of k; a kernel row that lies inside the image is one run of floats.
void gather_patch(const ConvParams& p, const Workspace& ws, const Tile& tile, const float* src, int m, float* dst) {
  const int64_t channels = p.group_in_c();
  const bool rows_are_runs = p.dilation_w == 1 && p.groups == 1;
  for (int64_t r = 0; r < p.kernel_h; ++r) {
    const float* first = tile.tap(p, src, m, r, 0);
    if (rows_are_runs && first != nullptr && tile.in_col[m] + p.kernel_w <= p.in_w) {
      copy_floats(first, p.kernel_w * channels, dst);
      dst += p.kernel_w * channels;
      continue;
    }
    for (int64_t s = 0; s < p.kernel_w; ++s, dst += channels) {
      const float* at = tile.tap(p, src, m, r, s);
      copy_floats(at == nullptr ? ws.zeros : at, channels, dst);
    }
  }
}

void fill_rows(
    const ConvParams& p, const Plan& plan, const Workspace& ws, const Tile& tile, const float* src, int64_t segments) {
  if (plan.gather) {
    for (int m = 0; m < tile_pixels; ++m) {
      float* dst = ws.patch + m * p.depth();
      ws.rows[m] = dst + ws.segments[0].channel;
      gather_patch(p, ws, tile, src, m, dst);
    }
    return;
  }
  for (int64_t i = 0; i < segments; ++i) {
    const Segment& segment = ws.segments[i];
    const int64_t r = segment.tap / p.kernel_w, s = segment.tap % p.kernel_w;
    for (int m = 0; m < tile_pixels; ++m) {
      const float* at = tile.tap(p, src, m, r, s);
      ws.rows[i * tile_pixels + m] = at == nullptr ? ws.zeros : at + segment.channel;
    }
  }
}

// Tiles [tile_begin, tile_end) of both branches for one block of filters: `block` counts over groups and their blocks.
void run_block(const ConvParams& p, const Plan& plan, int64_t block, int64_t tile_begin, int64_t tile_end) {
  const Workspace ws(p, plan);
  const int64_t group = block / plan.out_blocks;
  const int64_t group_begin = group * p.group_out_c();
  const int64_t begin = group_begin + block % plan.out_blocks * plan.panels_per_block * panel_width;
  const int64_t end = min_of(begin + plan.panels_per_block * panel_width, group_begin + p.group_out_c());
  const Epilogue epilogue{p.slope, p.slope_stride};
  for (int64_t k_begin = 0; k_begin < p.depth(); k_begin += plan.k_block) {
    const int64_t k_end = min_of(k_begin + plan.k_block, p.depth()), k_count = k_end - k_begin;
    const int64_t segments = split_segments(p, plan, k_begin, k_end, ws.segments);
    const int64_t panel_floats = k_count * panel_width;
    for (int64_t branch = 0; branch < p.branches; ++branch) {
      float* panel = ws.panels;
      for (int64_t c = begin; c < end; c += panel_width, panel += panel_floats) {
        const int64_t filters = min_of(panel_width, end - c);
        if (branch == 0) {
          pack_panel(p.weight + c * p.depth() + k_begin, p.depth(), filters, k_count, panel);
        } else if (p.mask != nullptr) {
          prune_panel(p.mask + c * p.mask_words + k_begin / 32, p.mask_words, filters, k_count, panel);
        }
      }
      const float* src = p.branch_src(branch) + group * p.group_in_c();
      for (int64_t index = tile_begin; index < tile_end; ++index) {
        const Tile tile(p, index, branch);
        fill_rows(p, plan, ws, tile, src, segments);
        PanelTask task{ws.segments,
                       segments,
                       ws.rows,
                       ws.panels,
                       &tile,
                       p.branch_dst(branch),
                       p.branch_residual(branch),
                       begin,
                       0,
                       k_begin == 0,
                       k_end == p.depth()};
        for (; task.channel < end; task.channel += panel_width, task.panel += panel_floats) {
          task.filters = min_of(panel_width, end - task.channel);
          run_panel(task, epilogue);
        }
      }
    }
  }
}

bool gemm_fits(const ConvParams&) { return true; }

int64_t gemm_work_items(const ConvParams& p) {
  const Plan plan(p);
  return p.groups * plan.out_blocks * plan.tiles;
}

// An item is a tile of a block of filters; tiles vary fastest, so a thread packs a block once for all its tiles.
void gemm_run(const ConvParams& p, int64_t begin, int64_t end) {
  const Plan plan(p);
  while (begin < end) {
    const int64_t tile_begin = begin % plan.tiles, tile_end = min_of(plan.tiles, tile_begin + end - begin);
    run_block(p, plan, begin / plan.tiles, tile_begin, tile_end);
    begin += tile_end - tile_begin;
  }
}

}  // namespace
}  // namespace prefiqs
