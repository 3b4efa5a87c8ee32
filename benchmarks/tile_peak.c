// The most multiply-adds that one core can do with AMX's TDPBF16PS: four sums of 16 x 16 by two tiles of pixels and two
// of filters. The tiles stay where they are or, with -DFROM_CACHE, are loaded before each four products from a block
// that only the second-level cache holds.
#include <immintrin.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "clock.h"

struct TileConfiguration {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
_Static_assert(sizeof(struct TileConfiguration) == 64, "as LDTILECFG reads it");

enum { tiles = 8, tile_numbers = 512, row_bytes = 64, loaded = 4 * tile_numbers, groups = 128 };

static void load_tiles(const uint16_t* numbers) {
  _tile_loadd(4, numbers, row_bytes);
  _tile_loadd(5, numbers + tile_numbers, row_bytes);
  _tile_loadd(6, numbers + 2 * tile_numbers, row_bytes);
  _tile_loadd(7, numbers + 3 * tile_numbers, row_bytes);
}

// Operations a second (a multiply-add is two) over about `seconds`; 0 where the system grants no tiles.
double measure_peak(double seconds) {
  enum { arch_req_xcomp_perm = 0x1023, tile_data = 18, rounds = 100 };
  if (syscall(SYS_arch_prctl, arch_req_xcomp_perm, tile_data) != 0) return 0;
  uint16_t block[groups * loaded] __attribute__((aligned(64)));  // 512 KiB
  for (int i = 0; i < groups * loaded; ++i) block[i] = 0x3c00;   // 2^-7
  struct TileConfiguration configuration = {.palette = 1};
  for (int i = 0; i < tiles; ++i) configuration.row_bytes[i] = row_bytes, configuration.rows[i] = 16;
  // The intrinsics do not tell the compiler what they read.
  __asm__ volatile("" : : "r"(block), "r"(&configuration) : "memory");
  _tile_loadconfig(&configuration);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  load_tiles(block);
  double operations = 0;
  const double start = now();
  do {
    for (int step = 0; step < rounds * groups; ++step) {
#ifdef FROM_CACHE
      load_tiles(block + step % groups * loaded);
#endif
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    operations += 4 * 2.0 * 16 * 16 * 32 * rounds * groups;
  } while (now() - start < seconds);
  const double rate = operations / (now() - start);
  _tile_release();
  return rate;
}
