// Winograd F(4x4, 3x3) for 3x3 convolutions (Lavin & Gray, arXiv 1509.09308): a tile of 4x4 outputs takes 36
// multiplications (points) for each pair of channels instead of 144, or 81 at stride 2 (winograd_transforms.h).
//
// Layout: pixels V [branch][point][tile][c], products M [point][tile][panel], filters U [point][c][panel].
// In fast memory: V and M of a block of tiles; for one panel of filters its weights P [9][c][panel] and U.
// Loop: for each block of tiles: V = Bt d B; for each panel: pack P; for each branch: mask P in place if it is the
// pruned one; U = G P Gt; for each point: M = V U; dst = At M A. No transformed filter outlives its panel.
// A sum over c is one chain in order, so no block or thread changes a bit.
#pragma once
#include "cpu/epilogue.h"
#include "cpu/heuristics.h"
#include "cpu/kernels.h"
#include "cpu/panel.h"
#include "cpu/winograd_transforms.h"

namespace prefiqs {
namespace {

template <class T>
struct WinogradPlan {
  static constexpr int points = T::in_tile * T::in_tile;
  int64_t tile_rows, tile_cols, tiles;  // the first two of an image, the last of a branch
  int64_t block_tiles, groups, panels;
  int64_t group_floats;                                 // of V: one group of tiles
  int64_t pixel_stride, filter_stride, product_stride;  // from point to point of V, U and M

  explicit WinogradPlan(const ConvParams& p) {
    tile_rows = ceil_div(p.out_h, out_tile);
    tile_cols = ceil_div(p.out_w, out_tile);
    tiles = p.images * tile_rows * tile_cols;
    const int64_t fitting =
        max_of(1, min_of(heuristics::winograd_most_tiles, heuristics::winograd_pixel_floats / (points * p.in_c)));
    block_tiles = ceil_div(tiles, ceil_div(tiles, fitting));
    groups = ceil_div(block_tiles, tile_pixels);
    group_floats = ceil_div(p.in_c, lanes) * tile_step;
    panels = ceil_div(p.out_c, panel_width);
    // An odd number of cache lines, so that the points of a tile do not share one set of a cache.
    pixel_stride = odd_lines(groups * group_floats);
    filter_stride = odd_lines(p.in_c * panel_width);
    product_stride = odd_lines(block_tiles * panel_width);
  }

  static int64_t odd_lines(int64_t floats) { return (ceil_div(floats, 16) | 1) * 16; }

  // The groups of tiles have nearly equal sizes, so that none is left with a tile or two.
  int64_t group_begin(int64_t group, int64_t count) const { return count * group / groups; }
};

struct TilePlace {
  int64_t image, row, col;  // of the tile's first output pixel
};

template <class T>
TilePlace place_tile(const WinogradPlan<T>& plan, int64_t tile) {
  const int64_t in_image = tile % (plan.tile_rows * plan.tile_cols);
  return {tile / (plan.tile_rows * plan.tile_cols), in_image / plan.tile_cols * out_tile,
          in_image % plan.tile_cols * out_tile};
}

// Computes V of one group of tiles, [point][c / lanes][tile][lanes]. `taps` points to the input pixel of each point.
template <class T, class Src>
void transform_group(
    const ConvParams& p, const WinogradPlan<T>& plan, const Src* const* taps, int64_t count, float* dst) {
  constexpr int points = WinogradPlan<T>::points;
  for (int64_t c = 0; c < p.in_c; c += lanes, dst += tile_step) {
    const int64_t n = min_of(lanes, p.in_c - c);
    for (int64_t tile = 0; tile < count; ++tile) {
      const Src* const* tap = taps + tile * points;
      Vec d[points], t[points];
      if (n == lanes) {
        for (int i = 0; i < points; ++i) d[i] = Vec::load(tap[i] + c);
      } else {
        for (int i = 0; i < points; ++i) d[i] = Vec::load(tap[i] + c, n);
      }
      for (int i = 0; i < points; ++i) __builtin_prefetch(tap[i] + c + lanes);
      for (int col = 0; col < T::in_tile; ++col) T::pixels(d + col, T::in_tile, t + col);
      for (int row = 0; row < T::in_tile; ++row) T::pixels(t + row * T::in_tile, 1, d + row * T::in_tile);
      for (int i = 0; i < points; ++i) d[i].store(dst + i * plan.pixel_stride + tile * lanes);
    }
  }
}

// Computes V [point][group][c / lanes][tile][lanes] of tiles [begin, end) of one branch. `zeros` holds the channels of
// a pixel of padding.
template <class T, class Src>
void transform_block(const ConvParams& p,
                     const WinogradPlan<T>& plan,
                     const Src* src,
                     int64_t begin,
                     int64_t end,
                     const Src* zeros,
                     float* pixels) {
  for (int64_t group = 0; group < plan.groups; ++group) {
    const int64_t first = begin + plan.group_begin(group, end - begin);
    const int64_t count = begin + plan.group_begin(group + 1, end - begin) - first;
    const Src* taps[tile_pixels * WinogradPlan<T>::points];
    for (int64_t tile = 0; tile < count; ++tile) {
      const TilePlace at = place_tile(plan, first + tile);
      for (int i = 0; i < plan.points; ++i) {
        const int64_t row = at.row * T::stride - p.pad_h + i / T::in_tile;
        const int64_t col = at.col * T::stride - p.pad_w + i % T::in_tile;
        const bool inside = row >= 0 && row < p.in_h && col >= 0 && col < p.in_w;
        taps[tile * plan.points + i] = inside ? src + at.image * p.in_plane() + (row * p.in_w + col) * p.in_c : zeros;
      }
    }
    transform_group(p, plan, taps, count, pixels + group * plan.group_floats);
  }
}

// Computes U [point][c][panel] of a packed panel [tap][c][panel].
template <class T>
void transform_panel(const float* panel, int64_t channels, int64_t point_stride, float* filters) {
  const int64_t stride = channels * panel_width;
  for (int64_t at = 0; at < stride; at += lanes) {
    Vec half[T::in_tile * 3], t[T::in_tile];
    for (int s = 0; s < 3; ++s) {
      const float* column = panel + s * stride + at;
      T::filter(Vec::load(column), Vec::load(column + 3 * stride), Vec::load(column + 6 * stride), half + s, 3);
    }
    for (int row = 0; row < T::in_tile; ++row) {
      T::filter(half[row * 3], half[row * 3 + 1], half[row * 3 + 2], t, 1);
      for (int i = 0; i < T::in_tile; ++i) t[i].store(filters + (row * T::in_tile + i) * point_stride + at);
    }
  }
}

// products[m][panel] = sum over c of group[c][m] * weights[c][panel], for `count` tiles, at most `most`.
template <int most>
void multiply_group(int64_t count, int64_t channels, const float* group, const float* weights, float* products) {
  if (count < most) {
    if constexpr (most > 1) multiply_group<most - 1>(count, channels, group, weights, products);
    return;
  }
  Sums<most> sums;
  sums.add(packed_tile(group, channels), weights, heuristics::winograd_steps_ahead * tile_step);
#pragma GCC unroll 16
  for (int m = 0; m < most; ++m) {
    sums.acc[m][0].store(products + m * panel_width);
    sums.acc[m][1].store(products + m * panel_width + lanes);
  }
}

// M[point][tile][panel] = sum over c of V[point][tile][c] * U[point][c][panel].
template <class T>
void multiply_block(const ConvParams& p,
                    const WinogradPlan<T>& plan,
                    int64_t tiles,
                    const float* pixels,
                    const float* filters,
                    float* products) {
  for (int64_t point = 0; point < plan.points; ++point) {
    for (int64_t group = 0; group < plan.groups; ++group) {
      const int64_t begin = plan.group_begin(group, tiles), count = plan.group_begin(group + 1, tiles) - begin;
      multiply_group<tile_pixels>(count, p.in_c, pixels + point * plan.pixel_stride + group * plan.group_floats,
                                  filters + point * plan.filter_stride,
                                  products + point * plan.product_stride + begin * panel_width);
    }
  }
}

// Where a tile's outputs lie, in pixels of dst from its first one, and how many of them exist.
struct OutputTile {
  int64_t pixel, rows, cols;

  OutputTile(const ConvParams& p, const TilePlace& at)
      : pixel((at.image * p.out_h + at.row) * p.out_w + at.col),
        rows(min_of(out_tile, p.out_h - at.row)),
        cols(min_of(out_tile, p.out_w - at.col)) {}
};

void prefetch_pixels(const ConvParams& p, const OutputTile& tile, int64_t branch, int64_t channel) {
  for (int64_t i = 0; i < tile.rows; ++i) {
    for (int64_t j = 0; j < tile.cols; ++j) {
      const int64_t index = (tile.pixel + i * p.out_w + j) * p.out_c + channel;
      __builtin_prefetch(p.dst_address(branch, index), 1);
      if (p.residual != nullptr) __builtin_prefetch(p.residual_address(branch, index));
    }
  }
}

// Turns the products of a tile, for one vector of channels, into at most 16 outputs. `full`: into all 16, in all lanes.
template <class T, class Weight, bool full>
void finish_tile(const ConvParams& p,
                 const TilePlace& at,
                 const OutputTile& tile,
                 const float* sums,
                 int64_t sum_stride,
                 const Epilogue<Weight, full>& epilogue) {
  constexpr int points = WinogradPlan<T>::points;
  Vec m[points], half[out_tile * T::in_tile], y[out_tile * out_tile];
  for (int i = 0; i < points; ++i) m[i] = Vec::load(sums + i * sum_stride);
  for (int col = 0; col < T::in_tile; ++col) T::sums(m + col, T::in_tile, half + col, T::in_tile);
  for (int row = 0; row < out_tile; ++row) T::sums(half + row * T::in_tile, 1, y + row * out_tile, 1);
  for (int64_t i = 0; i < (full ? out_tile : tile.rows); ++i) {
    const int64_t row_bias = p.row_class[at.row + i] * p.col_classes;
    for (int64_t j = 0; j < (full ? out_tile : tile.cols); ++j) {
      epilogue.finish(y[i * out_tile + j], (tile.pixel + i * p.out_w + j) * p.out_c,
                      (row_bias + p.col_class[at.col + j]) * p.out_c);
    }
  }
}

// Computes dst for tiles [begin, end) of one branch and the channels of one panel.
template <class T, class Weight>
void finish_block(const ConvParams& p,
                  const WinogradPlan<T>& plan,
                  int64_t branch,
                  int64_t begin,
                  int64_t end,
                  int64_t panel,
                  const float* products) {
  for (int64_t index = begin; index < end; ++index, products += panel_width) {
    const TilePlace at = place_tile(plan, index);
    const OutputTile tile(p, at);
    for (int64_t v = 0; v < 2; ++v) {
      const int64_t c = panel * panel_width + v * lanes, left = p.out_c - c;
      if (left <= 0) break;
      const float* sums = products + v * lanes;
      // The next tile's cache lines lie in more places than the processor can foresee, so fetch them.
      for (int i = 0; i < plan.points; ++i) __builtin_prefetch(sums + i * plan.product_stride + panel_width);
      if (index + 1 < end) prefetch_pixels(p, OutputTile(p, place_tile(plan, index + 1)), branch, c);
      if (tile.rows == out_tile && tile.cols == out_tile && left >= lanes) {
        finish_tile<T>(p, at, tile, sums, plan.product_stride, Epilogue<Weight, true>(p, branch, c, left));
      } else {
        finish_tile<T>(p, at, tile, sums, plan.product_stride, Epilogue<Weight, false>(p, branch, c, left));
      }
    }
  }
}

// Runs panels [panel_begin, panel_end) for one block of tiles, both branches.
template <class T, class Src, class Weight>
void run_tiles(
    const ConvParams& p, const WinogradPlan<T>& plan, int64_t block, int64_t panel_begin, int64_t panel_end) {
  const int64_t begin = block * plan.block_tiles, end = min_of(begin + plan.block_tiles, plan.tiles);
  const int64_t sources = p.src_shared ? 1 : p.branches;
  const int64_t pixel_floats = plan.points * plan.pixel_stride;
  const int64_t panel_floats = p.in_c * panel_width, zero_floats = ceil_div(p.in_c, 16) * 16;
  float* pixels =
      thread_workspace(static_cast<size_t>(sources * pixel_floats + 9 * panel_floats +
                                           plan.points * (plan.filter_stride + plan.product_stride) + zero_floats));
  float* panel = pixels + sources * pixel_floats;
  float* filters = panel + 9 * panel_floats;
  float* products = filters + plan.points * plan.filter_stride;
  Src* zeros = reinterpret_cast<Src*>(products + plan.points * plan.product_stride);
  std::memset(zeros, 0, static_cast<size_t>(zero_floats) * sizeof(float));

  for (int64_t source = 0; source < sources; ++source) {
    transform_block(p, plan, p.branch_src<Src>(source), begin, end, zeros, pixels + source * pixel_floats);
  }
  for (int64_t index = panel_begin; index < panel_end; ++index) {
    const int64_t c = index * panel_width, count = min_of(panel_width, p.out_c - c);
    for (int64_t branch = 0; branch < p.branches; ++branch) {
      if (branch == 0) {
        pack_panel(p.filter<Weight>(c), p.depth(), count, p.depth(), panel);
        transform_panel<T>(panel, p.in_c, plan.filter_stride, filters);
      } else if (p.mask != nullptr) {
        prune_panel<Float32Product>(p.mask + c * p.mask_words, p.mask_words, count, p.depth(), panel);
        transform_panel<T>(panel, p.in_c, plan.filter_stride, filters);
      }
      multiply_block(p, plan, end - begin, pixels + (sources == 2 ? branch * pixel_floats : 0), filters, products);
      finish_block<T, Weight>(p, plan, branch, begin, end, index, products);
    }
  }
}

// Winograd pays if the tiles are well filled (at stride 2, which saves less, nearly full) and there are enough channels
// to pay for the transforms.
bool winograd_fits(const ConvParams& p) {
  const bool stride = p.stride_h == p.stride_w && (p.stride_h == 1 || p.stride_h == 2);
  const bool shape = p.kernel_h == 3 && p.kernel_w == 3 && p.dilation_h == 1 && p.dilation_w == 1 && p.groups == 1;
  const int64_t tile_area = ceil_div(p.out_h, out_tile) * ceil_div(p.out_w, out_tile) * out_tile * out_tile;
  const int64_t needed_tenths =
      p.stride_h == 1 ? heuristics::winograd_filled_tenths : heuristics::winograd_filled_tenths_stride2;
  const int64_t filled = 10 * p.out_h * p.out_w, needed = needed_tenths * tile_area;
  return stride && shape && p.in_c >= heuristics::winograd_least_channels &&
         p.out_c >= heuristics::winograd_least_channels && filled >= needed;
}

template <class T>
int64_t count_items(const ConvParams& p) {
  const WinogradPlan<T> plan(p);
  return ceil_div(plan.tiles, plan.block_tiles) * plan.panels;
}

// An item of work is one panel for one block of tiles. Panels vary fastest, so a thread transforms the pixels once.
template <class T, class Src, class Weight>
void run_items(const ConvParams& p, int64_t begin, int64_t end) {
  const WinogradPlan<T> plan(p);
  while (begin < end) {
    const int64_t panel_begin = begin % plan.panels, panel_end = min_of(plan.panels, panel_begin + end - begin);
    run_tiles<T, Src, Weight>(p, plan, begin / plan.panels, panel_begin, panel_end);
    begin += panel_end - panel_begin;
  }
}

int64_t winograd_work_items(const ConvParams& p) {
  return p.stride_h == 1 ? count_items<WinogradStride1>(p) : count_items<WinogradStride2>(p);
}

void winograd_run(const ConvParams& p, int64_t begin, int64_t end) {
  with_formats(p, [&]<class Src, class Weight>() {
    if (p.stride_h == 1) {
      run_items<WinogradStride1, Src, Weight>(p, begin, end);
    } else {
      run_items<WinogradStride2, Src, Weight>(p, begin, end);
    }
  });
}

}  // namespace
}  // namespace prefiqs
