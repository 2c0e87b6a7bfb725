// IEEE half and bfloat16 in plain integer arithmetic: the definition that every hardware
// conversion is tested against. Rounding is to nearest, ties to even; overflow gives infinity;
// subnormals are kept. A NaN keeps its sign, upper payload and becomes quiet.
#pragma once

#include <cstdint>
#include <cstring>

#include "base/contracts.h"

namespace kvant {

KVANT_INLINE uint32_t bits_of(float x) {
  uint32_t u;
  memcpy(&u, &x, 4);
  return u;
}

KVANT_INLINE float float_of(uint32_t u) {
  float x;
  memcpy(&x, &u, 4);
  return x;
}

KVANT_INLINE float f16_to_f32(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000) << 16;
  const uint32_t magnitude = h & 0x7fff;
  if (magnitude - 0x0400u < 0x7800u) return float_of(sign | ((magnitude << 13) + 0x38000000u));
  if (magnitude >= 0x7c00) {
    return float_of(sign | 0x7f800000 | ((magnitude & 1023) << 13) | (magnitude > 0x7c00 ? 0x400000 : 0));
  }
  return float_of(sign | bits_of(float(magnitude) * 0x1p-24f));
}

KVANT_INLINE uint16_t f32_to_f16(float x) {
  const uint32_t u = bits_of(x);
  const uint32_t sign = (u >> 16) & 0x8000;
  const uint32_t magnitude = u & 0x7fffffff;
  if (magnitude > 0x7f800000) {
    return uint16_t(sign | 0x7e00 | ((magnitude >> 13) & 1023));
  }
  if (magnitude >= 0x477ff000) {
    return uint16_t(sign | 0x7c00);
  }
  if (magnitude < 0x38800000) {
    // Adding 0.5 aligns the last kept bit of a subnormal half with the last bit of the float.
    const float aligned = float_of(magnitude) + 0.5f;
    return uint16_t(sign | (bits_of(aligned) - 0x3f000000));
  }
  const uint32_t odd = (magnitude >> 13) & 1;
  return uint16_t(sign | ((magnitude - 0x38000000 + 0xfff + odd) >> 13));
}

KVANT_INLINE float bf16_to_f32(uint16_t h) { return float_of(uint32_t(h) << 16); }

KVANT_INLINE uint16_t f32_to_bf16(float x) {
  // Both cases computed and one chosen, so that loops over it become vectors.
  const uint32_t u = bits_of(x);
  const uint32_t rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16, quiet = (u >> 16) | 64;
  return uint16_t((u & 0x7fffffff) > 0x7f800000 ? quiet : rounded);
}

}  // namespace kvant
