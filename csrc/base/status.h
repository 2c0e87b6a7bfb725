// What a room returns when a call cannot be served: a code and a static text, no allocation.
#pragma once

#include <cstdint>

namespace kvant {

enum class Code : int32_t {
  ok = 0,
  bad_shape = -1,
  bad_format = -2,
  bad_alignment = -3,
  no_memory = -4,
  io = -5,
  unsupported_isa = -6,
  busy = -7,
  full = -8,
};

struct [[nodiscard]] Status {
  Code code = Code::ok;
  const char* what = "";
  bool ok() const { return code == Code::ok; }
};

}  // namespace kvant
