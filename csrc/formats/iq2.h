// iq2_xxs, iq2_xs, iq2_s: 256 weights as points of a code book with eight coordinates of magnitude
// 8, 25 or 43, signs apart.  y = d * (0.5 + s) / 4 * (+-point).
// iq2_xxs: d f16, per 32 weights u32 of four point numbers and u32 of four 7-bit sign words and s.
// iq2_xs:  d f16, per 8 weights u16 of a 9-bit point number and a 7-bit sign word, s nibbles[8].
// iq2_s:   d f16, points low[32], signs[32], points high[8], s nibbles[8].
// A 7-bit sign word has an eighth bit that makes the number of minus signs even.
#pragma once

#include "formats/bytes.h"
#include "formats/grids.h"

namespace kvant {

KVANT_INLINE uint8_t even_signs(uint32_t seven) {
  const uint32_t bits = seven & 127;
  // Parity of seven bits from a table of sixteen: no population count in the baseline.
  return uint8_t(bits | ((0x6996u >> ((bits ^ bits >> 4) & 15)) & 1) << 7);
}

// Two points of eight magnitudes each, with a minus where a sign bit is set.
KVANT_INLINE void store_signed16(int8_t* codes, uint64_t first, uint64_t second, uint8_t signs1, uint8_t signs2) {
  const Bytes16 minus = spread_bits16(signs1, signs2);
  store_codes16(codes, (join_words(first, second) ^ minus) - minus);
}

KVANT_INLINE float half_step(float d, int code, float unit) { return d * (0.5f + float(code)) * unit; }

struct IQ2_XXS {
  static constexpr FormatInfo kInfo = {"iq2_xxs", 16, 256, 66, 32, false, false};
  static constexpr bool kHasMin = false;
  static constexpr const int8_t* kTable = nullptr;

  KVANT_INLINE void unpack(const uint8_t* block, UnpackedOf<IQ2_XXS>& u) {
    const float d = load_f16_field(block);
    for (int b = 0; b < 8; ++b) {
      const uint8_t* p = block + 2 + 8 * b;
      const uint32_t word = load_u32(p + 4);
      u.scale[b] = half_step(d, int(word >> 28), 0.25f);
      for (int l = 0; l < 4; l += 2) {
        store_signed16(u.codes + 32 * b + 8 * l, kIq2xxs.point[p[l]], kIq2xxs.point[p[l + 1]],
                       even_signs(word >> (7 * l)), even_signs(word >> (7 * l + 7)));
      }
    }
  }
};

struct IQ2_XS {
  static constexpr FormatInfo kInfo = {"iq2_xs", 17, 256, 74, 16, false, false};
  static constexpr bool kHasMin = false;
  static constexpr const int8_t* kTable = nullptr;

  KVANT_INLINE void unpack(const uint8_t* block, UnpackedOf<IQ2_XS>& u) {
    const float d = load_f16_field(block);
    for (int g = 0; g < 16; ++g) {
      u.scale[g] = half_step(d, (block[66 + g / 2] >> (4 * (g % 2))) & 15, 0.25f);
    }
    for (int g = 0; g < 16; ++g) {
      const uint32_t a = load_u16(block + 2 + 4 * g), b = load_u16(block + 4 + 4 * g);
      store_signed16(u.codes + 16 * g, kIq2xs.point[a & 511], kIq2xs.point[b & 511], even_signs(a >> 9),
                     even_signs(b >> 9));
    }
  }
};

struct IQ2_S {
  static constexpr FormatInfo kInfo = {"iq2_s", 22, 256, 82, 16, false, false};
  static constexpr bool kHasMin = false;
  static constexpr const int8_t* kTable = nullptr;

  KVANT_INLINE void unpack(const uint8_t* block, UnpackedOf<IQ2_S>& u) {
    const float d = load_f16_field(block);
    for (int g = 0; g < 16; ++g) {
      u.scale[g] = half_step(d, (block[74 + g / 2] >> (4 * (g % 2))) & 15, 0.25f);
    }
    const auto point = [&](int l) KVANT_LAMBDA {
      return kIq2s.point[block[2 + l] | ((block[66 + l / 4] >> (2 * (l % 4))) & 3) << 8];
    };
    for (int l = 0; l < 32; l += 2) {
      store_signed16(u.codes + 8 * l, point(l), point(l + 1), block[34 + l], block[35 + l]);
    }
  }
};

}  // namespace kvant
