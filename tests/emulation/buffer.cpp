// Guarded memory: the emulator's buffers.
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "emulator.h"

namespace emulation {

std::vector<Buffer*> buffers;

Buffer::Buffer(const char* name, const void* contents, size_t bytes, bool writable) : name_(name), bytes_(bytes) {
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t inner = (bytes + page - 1) / page * page;
  mapped_ = inner + 2 * page;
  pages_ = static_cast<unsigned char*>(mmap(nullptr, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  mprotect(pages_ + page, inner, PROT_READ | PROT_WRITE);
  memset(pages_ + page, nan_byte, inner);
  data_ = pages_ + page + inner - (bytes + 15) / 16 * 16;
  if (contents != nullptr) memcpy(data_, contents, bytes);
  if (!writable) mprotect(pages_ + page, inner, PROT_READ);
  buffers.push_back(this);
}

Buffer::~Buffer() {
  munmap(pages_, mapped_);
  std::erase(buffers, this);
}

bool Buffer::contains(const void* address, size_t bytes) const {
  const auto* begin = static_cast<const unsigned char*>(address);
  return begin >= data_ && begin + bytes <= data_ + bytes_;
}

bool Buffer::maps(const void* address) const {
  const auto* place = static_cast<const unsigned char*>(address);
  return place >= pages_ && place < pages_ + mapped_;
}

bool Buffer::intact() const {
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  for (const unsigned char* p = pages_ + page; p < pages_ + mapped_ - page; ++p) {
    if ((p < data_ || p >= data_ + bytes_) && *p != nan_byte) return false;
  }
  return true;
}

void Buffer::fill_with_nan() { memset(data_, nan_byte, bytes_); }

}  // namespace emulation
