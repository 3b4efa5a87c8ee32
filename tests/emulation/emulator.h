// A strict GPU in plain C++: threads are fibers, run warp by warp; what a real GPU leaves undefined is an error here,
// or NaN.
//
// Between two barriers the warps run one after the other, in ascending or descending order; a lane runs until it meets
// a collective (ldmatrix, mma, shuffle, barrier), which happens once all lanes of its warp stand at the same one. A
// warp that waits for an mbarrier lets the others run; what the copy engine does happens only when no warp can go on.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

namespace emulation {

struct Index {
  unsigned x;
};
extern Index thread_index, block_index, grid_size;

// Ends the kernel with this message; what the fibers hold is abandoned.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Runs `body` for every thread of every block; false after an error.
bool run_kernel(int64_t blocks, int threads, int shared_bytes, const std::function<void()>& body);

// All 32 lanes of a warp call it with the same name; `run` then gets their operands.
void collective(const char* name, void (*run)(void* const* lanes), void* operands);
void barrier(int number, int threads);  // threads 0: all of the block

// mbarriers, by their place in shared memory.
void mbarrier_init(uint32_t barrier, int arrivals);
void mbarrier_arrive(uint32_t barrier, int expected_bytes);
void mbarrier_arrive_copies(uint32_t barrier);  // once the thread's copies have landed
void mbarrier_wait(uint32_t barrier, int parity);
// `land` writes `bytes` at dst, NaN until then, and reports them to the barrier.
void engine_copy(uint32_t dst, size_t bytes, uint32_t barrier, std::function<void(unsigned char*)> land);

// A warp's asynchronous matrix product: `run` happens when the group it was committed in is waited for. `key` must be
// the same in the four warps of a warpgroup.
void matrix_async(uint64_t key, std::function<void()> run);
void matrix_commit();
void matrix_wait(int pending);

unsigned char* shared_memory();
int shared_bytes();

// An access of several bytes: aligned to its size, and within one buffer or the shared memory.
void check_access(const char* name, const void* address, size_t bytes);
// The shared memory from `address` on, if it has that many bytes there.
unsigned char* shared_at(const char* name, uint32_t address, size_t bytes);

void copy_async(uint32_t dst, const void* src, int bytes, bool valid);
void commit_copies();
void wait_copies(int pending);

// Memory of the kernels, at the end of its pages: behind it, and before them, every access faults.
class Buffer {
 public:
  Buffer(const char* name, const void* contents, size_t bytes, bool writable);  // null contents: NaN everywhere
  ~Buffer();
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  const char* name() const { return name_; }
  bool contains(const void* address, size_t bytes) const;
  bool maps(const void* address) const;  // its pages and the guards around them
  bool intact() const;                   // nothing was written around the data
  void fill_with_nan();

 private:
  const char* name_;
  unsigned char *pages_, *data_;
  size_t mapped_, bytes_;
};

constexpr unsigned char nan_byte = 0xff;  // all bits set is NaN in every floating type
extern std::vector<Buffer*> buffers;      // all that there are

extern bool descending;  // the order of warps and lanes
const char* last_error();
void clear_error();

}  // namespace emulation
