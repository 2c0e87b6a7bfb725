// Owned memory for arrays: aligned to 64 bytes, and from 2 MiB on to 2 MiB with huge pages asked
// for. Reads over 4 KiB pages run at half the speed of memory on fragmented hosts.
#pragma once

#include <cstddef>

namespace kvant {

constexpr size_t kHugePage = size_t(2) << 20;

// Null when there is no memory; the contents are zero.
void* allocate_buffer(size_t bytes);
void free_buffer(void* p, size_t bytes);

// Scratch of this thread, kept between calls; contents are undefined. Null when there is no memory.
// Tasks use slot 0; a call that starts tasks keeps what it prepared for them in the other.
constexpr int kTaskScratch = 0, kCallScratch = 1;
void* thread_scratch(size_t bytes, int slot = kTaskScratch);

}  // namespace kvant
