// One piece of scratch cut into arrays: a first pass adds up what is needed, a second hands it out.
#pragma once

#include <cstdint>

#include "runtime/buffer.h"

namespace kvant {

class Carver {
 public:
  explicit Carver(void* base = nullptr) : base_(reinterpret_cast<uintptr_t>(base)) {}
  size_t bytes() const { return bytes_; }

  // count elements, aligned to 64 bytes; of no use in the first pass.
  template <class T>
  T* take(int64_t count) {
    T* p = reinterpret_cast<T*>(base_ + bytes_);
    bytes_ += (size_t(count) * sizeof(T) + 63) / 64 * 64;
    return p;
  }

 private:
  uintptr_t base_;
  size_t bytes_ = 0;
};

// Calls place(carver) twice; false when there is no memory.
template <class Place>
bool carve_call_scratch(Place&& place) {
  Carver needed;
  place(needed);
  void* memory = thread_scratch(needed.bytes(), kCallScratch);
  if (!memory) return false;
  Carver carver(memory);
  place(carver);
  return true;
}

}  // namespace kvant
