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

// Far beyond any memory, and so far below 2^63 that no size computed from it overflows.
constexpr int64_t kMostElements = int64_t(1) << 51;

struct Rope;
// What the arguments of a rotation must be (capi.cpp).
Status check_rope(const Rope& r);

inline Status check_matrix(int32_t format, int64_t rows, int64_t cols, int32_t type) {
  if (format < 0 || format >= kFormatCount) return {Code::bad_format, "no such format"};
  if (type < KVANT_F32 || type > KVANT_BF16) return {Code::bad_format, "no such element type"};
  if (rows < 0 || cols < 0) return {Code::bad_shape, "negative number of rows or columns"};
  if (cols % kFormats.row[format].block) return {Code::bad_shape, "columns are not a multiple of the block"};
  if (rows > kMostElements || cols > kMostElements / (rows > 0 ? rows : 1)) return {Code::bad_shape, "too many elements"};
  return {};
}

inline Status check_aligned(const void* floats, int32_t type) {
  const uintptr_t size = type == KVANT_F32 ? 4 : 2;
  if (reinterpret_cast<uintptr_t>(floats) % size == 0) return {};
  return {Code::bad_alignment, "floats are not aligned to their size"};
}

inline Status check_packed(const void* packed, int64_t bytes) {
  if (bytes == 0 || reinterpret_cast<uintptr_t>(packed) % 64 == 0) return {};
  return {Code::bad_alignment, "packed weights are not aligned to 64 bytes"};
}

// Memory of rows of `width` bytes, `stride` bytes from one to the next.
struct Extent {
  uintptr_t begin, rows, stride, width;

  Extent(const void* p, int64_t rows_, int64_t stride_, int64_t width_)
      : begin(reinterpret_cast<uintptr_t>(p)), rows(uintptr_t(rows_)), stride(uintptr_t(stride_)), width(uintptr_t(width_)) {
    if (stride_ >= 0) return;
    begin += (rows - 1) * stride;
    stride = -stride;
  }

  uintptr_t bytes() const { return rows > 0 && width > 0 ? (rows - 1) * stride + width : 0; }

  bool touches(const Extent& other) const {
    if (other.begin < begin) return other.touches(*this);
    const uintptr_t apart = other.begin - begin;
    if (bytes() <= apart || other.bytes() == 0) return false;
    // Columns of one matrix lie side by side in each row.
    const bool side_by_side = stride == other.stride && apart % stride >= width && apart % stride + other.width <= stride;
    return !side_by_side;
  }
};

}  // namespace kvant
