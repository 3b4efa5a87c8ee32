// The pixels of a strip of output rows as AMX tiles read them, X [chunk][phase][row][col][image][32].
//
// A chunk is 32 channels. Rows and columns that lie `stride` apart are neighbours: each phase of the stride has a plane
// of its own. Padding is stored as zeros. So, for an output at position q = (row * pitch + col) * images + image, a tap
// reads 64 bytes at a constant distance from 64 * q, and 16 positions from q on are a tile. Positions in the gap
// between two rows are computed in vain; several images side by side leave fewer of them on small maps. Where there are
// few channels, X is unfolded: a position has all taps of its output, and there is one tap.
#pragma once
#include <numeric>

#include "conv_params.h"
#include "cpu/amx_tiles.h"
#include "cpu/heuristics.h"
#include "cpu/vec.h"

namespace prefiqs {
namespace {

// 32 values of k, or fewer at the end of the channels: their place in a filter, and their distance in X in bytes.
struct AmxStep {
  int64_t k, count, offset;
};

// A tile of 16 positions: where it begins in X in bytes, and which of its positions are outputs.
struct AmxOutput {
  int64_t offset, count;
  int64_t place[tile_rows];  // of the output in the tile
  int64_t pixel[tile_rows];  // its place in dst, in numbers
  int64_t bias[tile_rows];   // that of its class in the bias table, in floats
};

// Copies numbers as bfloat16.
void copy_numbers(const BFloat16* src, int64_t count, BFloat16* dst) {
  std::memcpy(dst, src, static_cast<size_t>(count) * sizeof(BFloat16));
}
void copy_numbers(const float* src, int64_t count, BFloat16* dst) {
  for (; count >= Vec::width; count -= Vec::width, src += Vec::width, dst += Vec::width) Vec::load(src).store(dst);
  if (count > 0) Vec::load(src, count).store(dst, count);
}

void set_zeros(int64_t count, BFloat16* dst) { std::memset(dst, 0, static_cast<size_t>(count) * sizeof(BFloat16)); }

// Copies the numbers of a step as bfloat16, and zeros behind them. Nearly all steps are whole: their length is known.
template <class Src>
void copy_step(const Src* src, int64_t count, BFloat16* dst) {
  if (count == tile_k) {
    copy_numbers(src, tile_k, dst);
  } else {
    set_zeros(tile_k, dst);
    copy_numbers(src, count, dst);
  }
}

// Some output rows of a group of images.
struct AmxStrip {
  int64_t first_image, images;
  int64_t row_begin, rows;
};

struct AmxPixels {
  bool unfolded;
  int64_t chunks, steps;
  int64_t phases_h, phases_w;
  int64_t more_rows;  // of a plane than the strip has outputs
  int64_t pitch;      // columns of a plane
  int64_t images;     // side by side
  int64_t groups;     // of so many images, the last one perhaps of fewer
  int64_t strip_rows, group_strips;

  explicit AmxPixels(const ConvParams& p)
      : unfolded(p.taps() > 1 && p.in_c < heuristics::amx_least_channels),
        chunks(ceil_div(unfolded ? p.depth() : p.in_c, tile_k)),
        steps(unfolded ? chunks : chunks * p.taps()),
        phases_h(unfolded ? 1 : min_of(p.stride_h, p.kernel_h)),
        phases_w(unfolded ? 1 : min_of(p.stride_w, p.kernel_w)),
        more_rows(unfolded ? 0 : (p.kernel_h - 1) / p.stride_h),
        pitch(p.out_w + (unfolded ? 0 : (p.kernel_w - 1) / p.stride_w)),
        images(max_of(1, min_of(p.images, tile_rows / std::gcd(tile_rows, p.out_w)))),
        groups(ceil_div(p.images, images)) {
    const int64_t fitting = heuristics::amx_pixel_numbers / row_numbers() - more_rows;
    const int64_t wanted = ceil_div(p.out_h, ceil_div(heuristics::amx_least_items, max_of(1, groups)));
    const int64_t least = ceil_div(heuristics::amx_least_positions, p.out_w * images);
    strip_rows = min_of(p.out_h, max_of(1, min_of(fitting, max_of(wanted, least))));
    group_strips = ceil_div(p.out_h, strip_rows);
    strip_rows = ceil_div(p.out_h, group_strips);
    group_strips = ceil_div(p.out_h, strip_rows);
  }

  int64_t row_numbers() const { return chunks * phases_h * phases_w * pitch * images * tile_k; }
  int64_t plane_positions() const { return (strip_rows + more_rows) * pitch * images; }
  // A last tile may reach 15 positions beyond the last plane.
  int64_t numbers() const { return (strip_rows + more_rows) * row_numbers() + tile_rows * tile_k; }
  int64_t most_outputs() const { return strip_rows * ceil_div(pitch * images, tile_rows); }

  AmxStrip place_strip(const ConvParams& p, int64_t strip) const {
    const int64_t first_image = strip / group_strips * images, row_begin = strip % group_strips * strip_rows;
    return {first_image, min_of(images, p.images - first_image), row_begin, min_of(strip_rows, p.out_h - row_begin)};
  }

  // Steps have the same places for all groups of images: those of a full one.
  void list_steps(const ConvParams& p, AmxStep* step) const {
    const int64_t channels = unfolded ? p.depth() : p.in_c;
    for (int64_t tap = 0; tap < (unfolded ? 1 : p.taps()); ++tap) {
      const int64_t r = tap / p.kernel_w, s = tap % p.kernel_w;
      const int64_t plane = r % p.stride_h * phases_w + s % p.stride_w;
      const int64_t shift = (r / p.stride_h * pitch + s / p.stride_w) * images;
      for (int64_t chunk = 0; chunk < chunks; ++chunk, ++step) {
        const int64_t c = chunk * tile_k;
        const int64_t place = (chunk * phases_h * phases_w + plane) * plane_positions() + shift;
        *step = {tap * channels + c, min_of(tile_k, channels - c), place * tile_row_bytes};
      }
    }
  }

  // Lists the tiles that cover the outputs of a strip; returns how many there are.
  int64_t list_outputs(const ConvParams& p, int64_t strip, AmxOutput* output) const {
    const AmxStrip here = place_strip(p, strip);
    const int64_t line = pitch * images;
    int64_t tiles = 0;
    for (int64_t row = 0, at = 0; row < here.rows; ++tiles, ++output) {
      *output = {(row * line + at) * tile_row_bytes, 0, {}, {}, {}};
      for (int64_t place = 0; place < tile_rows && row < here.rows; ++place) {
        const int64_t col = at / images, image = at % images;
        if (col < p.out_w && image < here.images) {
          const int64_t out_row = here.row_begin + row, i = output->count++;
          output->place[i] = place;
          output->pixel[i] = (((here.first_image + image) * p.out_h + out_row) * p.out_w + col) * p.out_c;
          output->bias[i] = (p.row_class[out_row] * p.col_classes + p.col_class[col]) * p.out_c;
        }
        if (++at == line) at = 0, ++row;
      }
      if (at >= p.out_w * images) at = 0, ++row;  // the next tile skips the gap
    }
    return tiles;
  }

  // Fills X for one strip. src: of the branch.
  template <class Src>
  void fill(const ConvParams& p, const Src* src, int64_t strip, BFloat16* x) const {
    const AmxStrip here = place_strip(p, strip);
    for (int64_t image = 0; image < here.images; ++image) {
      const Src* from = src + (here.first_image + image) * p.in_plane();
      for (int64_t plane = 0; plane < phases_h * phases_w; ++plane) {
        for (int64_t row = 0; row < here.rows + more_rows; ++row) {
          BFloat16* to = x + (plane * plane_positions() + row * pitch * images + image) * tile_k;
          for (int64_t col = 0; col < pitch; ++col, to += images * tile_k) {
            if (unfolded) {
              unfold_output(p, from, here.row_begin + row, col, to);
            } else {
              copy_pixel(p, from, (here.row_begin + row) * p.stride_h + plane / phases_w - p.pad_h,
                         col * p.stride_w + plane % phases_w - p.pad_w, to);
            }
          }
        }
      }
    }
  }

 private:
  int64_t chunk_numbers() const { return phases_h * phases_w * plane_positions() * tile_k; }

  // Copies the channels of a source pixel, or zeros for padding, to one position of every chunk.
  template <class Src>
  void copy_pixel(const ConvParams& p, const Src* image, int64_t row, int64_t col, BFloat16* to) const {
    if (row < 0 || row >= p.in_h || col < 0 || col >= p.in_w) {
      for (int64_t chunk = 0; chunk < chunks; ++chunk, to += chunk_numbers()) set_zeros(tile_k, to);
      return;
    }
    const Src* from = image + (row * p.in_w + col) * p.in_c;
    for (int64_t c = 0; c < p.in_c; c += tile_k, to += chunk_numbers()) {
      copy_step(from + c, min_of(tile_k, p.in_c - c), to);
    }
  }

  // Copies what the taps of one output read, in the order of k.
  template <class Src>
  void unfold_output(const ConvParams& p, const Src* image, int64_t out_row, int64_t out_col, BFloat16* to) const {
    const int64_t col = out_col * p.stride_w - p.pad_w;
    BFloat16 numbers[tile_k];
    int64_t filled = 0;
    const auto put = [&](const Src* from, int64_t count) {  // zeros where from is null
      while (count > 0) {
        const int64_t part = min_of(count, tile_k - filled);
        if (from == nullptr) {
          set_zeros(part, numbers + filled);
        } else {
          copy_numbers(from, part, numbers + filled);
          from += part;
        }
        count -= part;
        filled += part;
        if (filled < tile_k) return;
        std::memcpy(to, numbers, sizeof numbers);
        to += chunk_numbers();
        filled = 0;
      }
    };
    for (int64_t r = 0; r < p.kernel_h; ++r) {
      const int64_t row = out_row * p.stride_h - p.pad_h + r;
      const bool inside = row >= 0 && row < p.in_h;
      // The taps [begin, end) of this row fall inside the image.
      const int64_t begin = inside ? min_of(p.kernel_w, max_of(0, -col)) : p.kernel_w;
      const int64_t end = max_of(begin, min_of(p.kernel_w, p.in_w - col));
      put(nullptr, begin * p.in_c);
      if (begin < end) put(image + (row * p.in_w + col + begin) * p.in_c, (end - begin) * p.in_c);
      put(nullptr, (p.kernel_w - end) * p.in_c);
    }
    if (filled > 0) put(nullptr, tile_k - filled);
  }
};

}  // namespace
}  // namespace prefiqs
