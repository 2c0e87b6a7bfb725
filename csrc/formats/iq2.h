// iq2_xxs, iq2_xs, iq2_s: 256 weights as points of a code book with eight coordinates of magnitude
// 8, 25 or 43, signs apart.  y = d * (0.5 + s) / 4 * (+-point).
// iq2_xxs: d f16, per 32 weights u32 of four point numbers and u32 of four 7-bit sign words and s.
// iq2_xs:  d f16, per 8 weights u16 of a 9-bit point number and a 7-bit sign word, s nibbles[8].
// iq2_s:   d f16, points low[32], signs[32], points high[8], s nibbles[8].
// A 7-bit sign word has an eighth bit that makes the number of minus signs even.
#pragma once

#include "formats/bytes.h"
#include "formats/grids.h"
#include "formats/tile.h"

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

// The eighth sign of a 7-bit word, behind it.
template <class V>
KVANT_INLINE typename V::I with_parity(typename V::I word) {
  const auto seven = word & V::splat_i(127);
  auto parity = seven ^ seven.template shr<4>();
  parity = parity ^ parity.template shr<2>();
  parity = (parity ^ parity.template shr<1>()) & V::splat_i(1);
  return seven | parity.template shl<7>();
}

// 64 plus or minus four magnitudes below 64: minus where one of the low four bits of `signs` is set.
template <class V>
KVANT_INLINE typename V::I signed_codes(typename V::I magnitudes, typename V::I signs) {
  const auto minus = spread_four_bits<V>(signs);
  const auto mask = minus.template shl<7>() - minus;
  return ((magnitudes ^ mask) + splat_bytes<V>(64)) - mask;
}

// Eight codes from word k on.
template <class V, class Out>
KVANT_INLINE void put_point(Out&& out, int k, const uint64_t* points, typename V::I index,
                            typename V::I signs) {
  typename V::I low, high;
  V::gather_pairs(points, index, low, high);
  out.put(k, signed_codes<V>(low, signs));
  out.put(k + 1, signed_codes<V>(high, signs.template shr<4>()));
}

template <class V>
KVANT_INLINE typename V::F half_steps(typename V::F d, typename V::I code, float unit) {
  return d * (V::splat(0.5f) + V::to_f32(code)) * V::splat(unit);
}

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

  static constexpr Plane kCodePlanes[] = {{2, 64, 4}}, kScalePlanes[] = {{0, 2, 2}};
  static constexpr int kCodeMax = 127, kCodeOffset = 64;

  template <class V, class Out>
  KVANT_INLINE void expand(const PackedBlock<V>& in, Out&& out) {
    const auto d = in.scale_half(0);
    each_place<V, 8>([&](int b) KVANT_LAMBDA {
      const auto points = in.code_word(2 * b), word = in.code_word(2 * b + 1);
      out.put_scale(b, half_steps<V>(d, word.template shr<28>(), 0.25f));
      each<4>([&]<int l>() KVANT_LAMBDA {
        const auto index = points.template shr<8 * l>() & V::splat_i(255);
        put_point<V>(out, 8 * b + 2 * l, kIq2xxs.point, index, with_parity<V>(word.template shr<7 * l>()));
      });
    });
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

  static constexpr Plane kCodePlanes[] = {{2, 64, 4}}, kScalePlanes[] = {{66, 8, 4}, {0, 2, 2}};
  static constexpr int kCodeMax = 127, kCodeOffset = 64;

  template <class V, class Out>
  KVANT_INLINE void expand(const PackedBlock<V>& in, Out&& out) {
    const auto d = in.scale_half(8);
    each_place<V, 2>([&](int half) KVANT_LAMBDA {
      const auto nibbles = in.scale_word(4 * half);
      each<8>([&]<int g>() KVANT_LAMBDA {
        out.put_scale(8 * half + g, half_steps<V>(d, nibbles.template shr<4 * g>() & V::splat_i(15), 0.25f));
      });
    });
    each_place<V, 16>([&](int g) KVANT_LAMBDA {
      const auto two = in.code_word(g), low = V::splat_i(511);
      put_point<V>(out, 4 * g, kIq2xs.point, two & low, with_parity<V>(two.template shr<9>()));
      put_point<V>(out, 4 * g + 2, kIq2xs.point, two.template shr<16>() & low, with_parity<V>(two.template shr<25>()));
    });
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

  static constexpr Plane kCodePlanes[] = {{2, 72, 4}}, kScalePlanes[] = {{74, 8, 4}, {0, 2, 2}};
  static constexpr int kCodeMax = 127, kCodeOffset = 64;

  template <class V, class Out>
  KVANT_INLINE void expand(const PackedBlock<V>& in, Out&& out) {
    const auto d = in.scale_half(8);
    each_place<V, 2>([&](int half) KVANT_LAMBDA {
      const auto nibbles = in.scale_word(4 * half), highs = in.code_word(16 + half);
      each<8>([&]<int g>() KVANT_LAMBDA {
        out.put_scale(8 * half + g, half_steps<V>(d, nibbles.template shr<4 * g>() & V::splat_i(15), 0.25f));
      });
      each<4>([&]<int i>() KVANT_LAMBDA {
        const int w = 4 * half + i;
        const auto points = in.code_word(w), signs = in.code_word(8 + w), high = highs.template shr<8 * i>();
        each<4>([&]<int l>() KVANT_LAMBDA {
          const auto index = (points.template shr<8 * l>() & V::splat_i(255)) |
                             (high.template shl<8 - 2 * l>() & V::splat_i(0x300));
          put_point<V>(out, 8 * w + 2 * l, kIq2s.point, index, signs.template shr<8 * l>());
        });
      });
    });
  }
};

}  // namespace kvant
