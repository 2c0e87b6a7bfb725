// What the front doors share: reporting a failure, and checks of arguments.
#pragma once

#include "base/status.h"
#include "capi/kvant.h"
#include "isa/select.h"

#define KVANT_EXPORT __attribute__((visibility("default")))

#define KVANT_CHECK(call) \
  if (const ::kvant::Status status = (call); !status.ok()) return report(status)

namespace kvant {

// Remembers the failure for kvant_error_text; returns its code.
int32_t report(Status status);

inline int32_t fail(Code code, const char* what) { return report({code, what}); }

inline Status check_matrix(int32_t format, int64_t rows, int64_t cols, int32_t type) {
  if (format < 0 || format >= kFormatCount) return {Code::bad_format, "no such format"};
  if (type < KVANT_F32 || type > KVANT_BF16) return {Code::bad_format, "no such element type"};
  if (rows < 0 || cols < 0) return {Code::bad_shape, "negative number of rows or columns"};
  if (cols % kFormats.row[format].block) return {Code::bad_shape, "columns are not a multiple of the block"};
  if (rows > 0 && cols > INT64_MAX / 16 / rows) return {Code::bad_shape, "too many elements"};
  return {};
}

inline Status check_aligned(const void* floats, int32_t type) {
  const uintptr_t size = type == KVANT_F32 ? 4 : 2;
  if (reinterpret_cast<uintptr_t>(floats) % size == 0) return {};
  return {Code::bad_alignment, "floats are not aligned to their size"};
}

inline Status check_packed(const void* packed) {
  if (reinterpret_cast<uintptr_t>(packed) % 64 == 0) return {};
  return {Code::bad_alignment, "packed weights are not aligned to 64 bytes"};
}

// Memory of rows, from the first to the end of the last.
struct Extent {
  const void* p;
  int64_t rows, stride;
  bool touches(const Extent& other) const {
    const auto begin = reinterpret_cast<uintptr_t>(p), begin2 = reinterpret_cast<uintptr_t>(other.p);
    return begin < begin2 + uintptr_t(other.rows * other.stride) && begin2 < begin + uintptr_t(rows * stride);
  }
};

}  // namespace kvant
