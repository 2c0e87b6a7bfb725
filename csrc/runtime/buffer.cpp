#include "runtime/buffer.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace kvant {
namespace {

size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

struct Scratch {
  void* p = nullptr;
  size_t bytes = 0;
  ~Scratch() { free_buffer(p, bytes); }
};

}  // namespace

void* allocate_buffer(size_t bytes) {
  if (bytes > SIZE_MAX - 2 * kHugePage) return nullptr;
  if (bytes < kHugePage) {
    void* p = aligned_alloc(64, round_up(bytes ? bytes : 1, 64));
    if (p) memset(p, 0, round_up(bytes ? bytes : 1, 64));
    return p;
  }
  // Map a huge page more than needed and give back what lies outside the aligned part.
  const size_t size = round_up(bytes, kHugePage), mapped = size + kHugePage;
  char* base = static_cast<char*>(mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (base == MAP_FAILED) return nullptr;
  const size_t offset = reinterpret_cast<size_t>(base) % kHugePage;
  const size_t before = offset ? kHugePage - offset : 0, after = mapped - size - before;
  if (before) munmap(base, before);
  if (after) munmap(base + before + size, after);
#ifdef MADV_HUGEPAGE
  madvise(base + before, size, MADV_HUGEPAGE);
#endif
  return base + before;
}

void free_buffer(void* p, size_t bytes) {
  if (!p) return;
  if (bytes < kHugePage) {
    free(p);
  } else {
    munmap(p, round_up(bytes, kHugePage));
  }
}

void* thread_scratch(size_t bytes, int slot) {
  thread_local Scratch slots[2];
  Scratch& scratch = slots[slot];
  if (scratch.bytes < bytes) {
    free_buffer(scratch.p, scratch.bytes);
    scratch.bytes = round_up(bytes, 4096);
    scratch.p = allocate_buffer(scratch.bytes);
    if (!scratch.p) scratch.bytes = 0;
  }
  return scratch.p;
}

}  // namespace kvant
