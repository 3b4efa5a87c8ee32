#include "emulator.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <map>
#include <memory>
#include <vector>

namespace emulation {
namespace {

constexpr size_t stack_bytes = 128 * 1024;
constexpr int lanes = 32;

struct Copy {
  unsigned char* dst;
  const void* src;
  int bytes;
  bool valid;
};

void land(const Copy& copy) {
  if (copy.valid) {
    memcpy(copy.dst, copy.src, static_cast<size_t>(copy.bytes));
  } else {
    memset(copy.dst, 0, static_cast<size_t>(copy.bytes));
  }
}

enum class State { ready, collective, barrier, mbarrier, finished };

struct Mbarrier {
  int arrivals, pending;
  int64_t bytes;
  int phase;  // of the one going on
};

// Of a warp: products not yet waited for, by group; the last one is open.
struct Products {
  std::vector<std::vector<std::function<void()>>> groups;
  std::vector<uint64_t> keys;
};

struct Fiber {
  ucontext_t start;
  jmp_buf point;
  bool started;
  State state;
  const char* name;  // of the collective
  void (*run)(void* const*);
  void* operands;
  int number, threads;  // of the barrier
  uint32_t mbarrier;
  int parity;
  std::vector<std::vector<Copy>> groups;  // the last one is open
};

char message[512];
std::unique_ptr<Buffer> shared;
std::vector<Fiber> fibers;
std::map<uint32_t, Mbarrier> mbarriers;
std::vector<std::function<void()>> landings;  // of the copy engine, in the order asked for
std::vector<Products> products;
unsigned char* stacks = nullptr;
size_t stack_count = 0;
Fiber* current = nullptr;
jmp_buf scheduler;
sigjmp_buf kernel_start;
const std::function<void()>* kernel;

// setjmp and longjmp between fibers, because swapcontext makes two system calls a switch; makecontext only starts one.
void leave(State state) {
  current->state = state;
  if (_setjmp(current->point) == 0) _longjmp(scheduler, 1);
}

void fiber_main() {
  (*kernel)();
  current->state = State::finished;
  _longjmp(scheduler, 1);
}

void resume(int thread) {
  Fiber& fiber = fibers[static_cast<size_t>(thread)];
  current = &fiber;
  thread_index.x = static_cast<unsigned>(thread);
  fiber.state = State::ready;
  if (_setjmp(scheduler) != 0) return;
  if (fiber.started) _longjmp(fiber.point, 1);
  fiber.started = true;
  setcontext(&fiber.start);
}

const char* place(const Fiber& fiber) {
  return fiber.state == State::finished   ? "the kernel's end"
         : fiber.state == State::barrier  ? (fiber.number == 0 ? "__syncthreads" : "a named barrier")
         : fiber.state == State::mbarrier ? "an mbarrier"
                                          : fiber.name;
}

int ordered(int i, int count) { return descending ? count - 1 - i : i; }

Mbarrier& mbarrier_at(uint32_t place) {
  const auto found = mbarriers.find(place);
  if (found == mbarriers.end()) fail("mbarrier: none was initialised at %u", place);
  return found->second;
}

void end_phase_if_complete(Mbarrier& barrier) {
  if (barrier.pending != 0 || barrier.bytes != 0) return;
  barrier.phase ^= 1;
  barrier.pending = barrier.arrivals;
}

void arrive(uint32_t place) {
  Mbarrier& barrier = mbarrier_at(place);
  if (--barrier.pending < 0) fail("mbarrier %u: more arrivals than expected", place);
  end_phase_if_complete(barrier);
}

// Whether what the warp waits for has come; at a barrier of threads, that is for run_block to say.
bool can_run(const Fiber& first) {
  switch (first.state) {
    case State::mbarrier:
      return mbarrier_at(first.mbarrier).phase != first.parity;
    case State::barrier:
    case State::finished:
      return false;
    default:
      return true;
  }
}

// Until the warp has to wait, or has finished.
void run_warp(int warp) {
  Fiber* first = &fibers[static_cast<size_t>(warp * lanes)];
  do {
    for (int i = 0; i < lanes; ++i) resume(warp * lanes + ordered(i, lanes));
    void* operands[lanes];
    for (int lane = 0; lane < lanes; ++lane) {
      const Fiber& other = first[lane];
      if (strcmp(place(other), place(first[0])) != 0) {
        fail("warp %d: lane 0 is at %s, lane %d at %s", warp, place(first[0]), lane, place(other));
      }
      if (first->state == State::mbarrier && (other.mbarrier != first->mbarrier || other.parity != first->parity)) {
        fail("warp %d: lanes wait for different mbarriers", warp);
      }
      operands[lane] = other.operands;
    }
    if (first->state == State::collective) first->run(operands);
  } while (can_run(*first));
}

// Lets the warps go that stand at a barrier all of whose threads have come.
bool release_barriers() {
  bool released = false;
  for (int number = 0; number < 16; ++number) {
    int wanted = 0, come = 0;
    for (const Fiber& fiber : fibers) {
      if (fiber.state != State::barrier || fiber.number != number) continue;
      if (wanted != 0 && wanted != fiber.threads) fail("barrier %d: threads expect different numbers", number);
      wanted = fiber.threads;
      ++come;
    }
    if (come == 0 || come != wanted) continue;
    for (Fiber& fiber : fibers) {
      if (fiber.state == State::barrier && fiber.number == number) fiber.state = State::ready;
    }
    released = true;
  }
  return released;
}

bool land_one() {
  if (landings.empty()) return false;
  const auto place = descending ? landings.end() - 1 : landings.begin();
  const auto land = *place;
  landings.erase(place);
  land();
  return true;
}

void run_block(int threads) {
  shared->fill_with_nan();
  for (int thread = 0; thread < threads; ++thread) {
    Fiber& fiber = fibers[static_cast<size_t>(thread)];
    fiber.started = false;
    fiber.state = State::ready;
    fiber.groups.assign(1, {});
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = stacks + static_cast<size_t>(thread) * stack_bytes;
    fiber.start.uc_stack.ss_size = stack_bytes;
    makecontext(&fiber.start, fiber_main, 0);
  }
  mbarriers.clear();
  landings.clear();
  const int warps = threads / lanes;
  products.assign(static_cast<size_t>(warps), {{{}}, {}});
  for (;;) {
    bool ran = false;
    for (int i = 0; i < warps; ++i) {
      const int warp = ordered(i, warps);
      if (!can_run(fibers[static_cast<size_t>(warp * lanes)])) continue;
      run_warp(warp);
      ran = true;
    }
    if (!ran && !release_barriers() && !land_one()) break;
  }
  for (int warp = 0; warp < warps; ++warp) {
    const Fiber& first = fibers[static_cast<size_t>(warp * lanes)];
    if (first.state != State::finished) fail("warp %d waits for ever at %s", warp, place(first));
    const Products& own = products[static_cast<size_t>(warp)];
    if (own.groups.size() > 1 || !own.groups[0].empty()) fail("warp %d ended with products not waited for", warp);
    if (own.keys != products[static_cast<size_t>(warp / 4 * 4)].keys) fail("warp %d: products of its own", warp);
  }
  for (const Fiber& fiber : fibers) {
    for (const auto& group : fiber.groups) {
      if (!group.empty()) fail("thread %td ended with copies it had not waited for", &fiber - fibers.data());
    }
  }
  if (!shared->intact()) fail("a write outside the shared memory");
}

void on_fault(int, siginfo_t* info, void*) {
  const char* name = "no buffer";
  if (shared->maps(info->si_addr)) name = shared->name();
  for (const Buffer* buffer : buffers) {
    if (buffer->maps(info->si_addr)) name = buffer->name();
  }
  snprintf(message, sizeof message, "block %u, thread %u: an access out of bounds, or a write to an input: %s",
           block_index.x, thread_index.x, name);
  siglongjmp(kernel_start, 1);
}

}  // namespace

Index thread_index, block_index, grid_size;
bool descending = false;

void fail(const char* format, ...) {
  const int used = snprintf(message, sizeof message, "block %u, thread %u: ", block_index.x, thread_index.x);
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(message + used, sizeof message - static_cast<size_t>(used), format, arguments);
  va_end(arguments);
  siglongjmp(kernel_start, 1);
}

const char* last_error() { return message; }
void clear_error() { message[0] = '\0'; }

bool run_kernel(int64_t blocks, int threads, int shared_bytes, const std::function<void()>& body) {
  if (static_cast<size_t>(threads) > stack_count) {
    stack_count = static_cast<size_t>(threads);
    stacks = static_cast<unsigned char*>(mmap(nullptr, stack_count * stack_bytes, PROT_READ | PROT_WRITE,
                                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  }
  fibers = std::vector<Fiber>(static_cast<size_t>(threads));
  shared = std::make_unique<Buffer>("shared memory", nullptr, static_cast<size_t>(shared_bytes), true);
  kernel = &body;
  grid_size.x = static_cast<unsigned>(blocks);

  struct sigaction action{};
  struct sigaction segv, bus;
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGSEGV, &action, &segv);
  sigaction(SIGBUS, &action, &bus);
  const bool failed = sigsetjmp(kernel_start, 1) != 0;
  if (!failed) {
    for (int64_t i = 0; i < blocks; ++i) {
      block_index.x = static_cast<unsigned>(ordered(static_cast<int>(i), static_cast<int>(blocks)));
      run_block(threads);
    }
    for (const Buffer* buffer : buffers) {
      if (!buffer->intact()) fail("a write outside %s", buffer->name());
    }
  }
  sigaction(SIGSEGV, &segv, nullptr);
  sigaction(SIGBUS, &bus, nullptr);
  return !failed;
}

void collective(const char* name, void (*run)(void* const* lanes), void* operands) {
  current->name = name;
  current->run = run;
  current->operands = operands;
  leave(State::collective);
}

void barrier(int number, int threads) {
  current->number = number;
  current->threads = threads == 0 ? static_cast<int>(fibers.size()) : threads;
  leave(State::barrier);
}

void mbarrier_init(uint32_t barrier, int arrivals) {
  shared_at("mbarrier", barrier, 8);
  mbarriers[barrier] = {arrivals, arrivals, 0, 0};
}

void mbarrier_arrive(uint32_t barrier, int expected_bytes) {
  mbarrier_at(barrier).bytes += expected_bytes;
  arrive(barrier);
}

void mbarrier_arrive_copies(uint32_t barrier) {
  std::vector<Copy> copies;
  for (const auto& group : current->groups) copies.insert(copies.end(), group.begin(), group.end());
  current->groups.assign(1, {});
  landings.emplace_back([copies, barrier] {
    for (const Copy& copy : copies) land(copy);
    arrive(barrier);
  });
}

void mbarrier_wait(uint32_t barrier, int parity) {
  mbarrier_at(barrier);
  current->mbarrier = barrier;
  current->parity = parity;
  leave(State::mbarrier);
}

void engine_copy(uint32_t dst, size_t bytes, uint32_t barrier, std::function<void(unsigned char*)> write) {
  unsigned char* place = shared_memory() + dst;
  if (!shared->contains(place, bytes)) fail("copy engine: %zu bytes outside the shared memory", bytes);
  if (dst % 1024 != 0) fail("copy engine: address %u is not a multiple of 1024", dst);
  memset(place, nan_byte, bytes);
  mbarrier_at(barrier);
  landings.emplace_back([=, write = std::move(write)] {
    write(place);
    Mbarrier& target = mbarrier_at(barrier);
    target.bytes -= static_cast<int64_t>(bytes);
    end_phase_if_complete(target);
  });
}

void matrix_async(uint64_t key, std::function<void()> run) {
  Products& own = products[thread_index.x / lanes];
  own.keys.push_back(key);
  own.groups.back().push_back(std::move(run));
}

void matrix_commit() { products[thread_index.x / lanes].groups.emplace_back(); }

void matrix_wait(int pending) {
  auto& groups = products[thread_index.x / lanes].groups;
  while (static_cast<int>(groups.size()) - 1 > pending) {
    for (const auto& run : groups.front()) run();
    groups.erase(groups.begin());
  }
}

unsigned char* shared_memory() { return static_cast<unsigned char*>(shared->data()); }

void check_access(const char* name, const void* address, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0) fail("%s: %p is not a multiple of %zu", name, address, bytes);
  if (shared->contains(address, bytes)) return;
  for (const Buffer* buffer : buffers) {
    if (buffer->contains(address, bytes)) return;
  }
  fail("%s: %zu bytes that lie in no buffer", name, bytes);
}

unsigned char* shared_at(const char* name, uint32_t address, size_t bytes) {
  unsigned char* place = shared_memory() + address;
  if (!shared->contains(place, bytes)) fail("%s: %zu bytes outside the shared memory", name, bytes);
  if (address % bytes != 0) fail("%s: address %u is not a multiple of %zu", name, address, bytes);
  return place;
}

// A copy lands when its thread waits for it; until then its place holds NaN.
void copy_async(uint32_t dst, const void* src, int bytes, bool valid) {
  unsigned char* place = shared_at("cp.async", dst, static_cast<size_t>(bytes));
  if (valid) check_access("cp.async", src, static_cast<size_t>(bytes));
  memset(place, nan_byte, static_cast<size_t>(bytes));
  current->groups.back().push_back({place, src, bytes, valid});
}

void commit_copies() { current->groups.emplace_back(); }

void wait_copies(int pending) {
  auto& groups = current->groups;
  while (static_cast<int>(groups.size()) - 1 > pending) {
    for (const Copy& copy : groups.front()) land(copy);
    groups.erase(groups.begin());
  }
}

}  // namespace emulation
