// f32, f16, bf16: every element its own block. They share the format table with the block formats
// so that a tensor of any kind is one thing; kernels/encode.h and kernels/decode.h convert them.
#pragma once

#include "formats/format.h"

namespace kvant {

struct F32 {
  static constexpr FormatInfo kInfo = {"f32", 0, 1, 4, 1, true, false};
};
struct F16 {
  static constexpr FormatInfo kInfo = {"f16", 1, 1, 2, 1, true, false};
};
struct BF16 {
  static constexpr FormatInfo kInfo = {"bf16", 30, 1, 2, 1, true, false};
};

}  // namespace kvant
