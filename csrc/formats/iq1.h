// iq1_s, iq1_m: 256 weights as points of a code book with eight coordinates -1, 0, 1, moved up or
// down by an eighth.  y = scale * (point +- 1/8); codes here are eighths, so scale / 8 goes with them.
// iq1_s: d f16, points low[32], per 32 weights u16: four 3-bit point highs, 3-bit s, sign of the shift;
//        scale = d * (2 s + 1).
// iq1_m: points low[32], nibbles[16] of a 3-bit point high and the sign of the shift, scales[8]: four
//        u16 of four 3-bit s each, one per 16 weights; their top nibbles together are d as f16.
#pragma once

#include "formats/bytes.h"
#include "formats/grids.h"
#include "formats/tile.h"

namespace kvant {

// Sixteen eighths: 8 * point + 1, or - 1 where down (0 or 1) says so; one `down` for each eight.
KVANT_INLINE void store_eighths16(int8_t* codes, uint64_t first, uint64_t second, uint64_t down1, uint64_t down2) {
  const Bytes16 up = join_words(down1 * 0x0202020202020202u, down2 * 0x0202020202020202u);
  store_codes16(codes, join_words(first, second) * 8 + 1 - up);
}

// Codes plus 9: 8 * (point + 1) + 2, and 2 less where down (0 or 1 in every lane) says so.
template <class V, class Out>
KVANT_INLINE void put_eighths(Out&& out, int k, typename V::I index, typename V::I down) {
  const auto two = splat_bytes<V>(3), one = splat_bytes<V>(1);
  const auto twice = down + down;
  const auto shift = splat_bytes<V>(2) - ((twice | twice.template shl<8>()) |
                                          (twice.template shl<16>() | twice.template shl<24>()));
  typename V::I low, high;
  V::gather_pairs(kIq1s.point, index, low, high);
  out.put(k, (((low & two) + one) & two).template shl<3>() + shift);
  out.put(k + 1, (((high & two) + one) & two).template shl<3>() + shift);
}

struct IQ1_S {
  static constexpr FormatInfo kInfo = {"iq1_s", 19, 256, 50, 32, false, false};
  static constexpr bool kHasMin = false;
  static constexpr const int8_t* kTable = nullptr;

  KVANT_INLINE void unpack(const uint8_t* block, UnpackedOf<IQ1_S>& u) {
    const float d = load_f16_field(block);
    for (int b = 0; b < 8; ++b) {
      const uint32_t word = load_u16(block + 34 + 2 * b);
      u.scale[b] = d * float(2 * ((word >> 12) & 7) + 1) * 0.125f;
      const auto point = [&](int l) KVANT_LAMBDA {
        return kIq1s.point[block[2 + 4 * b + l] | ((word >> (3 * l)) & 7) << 8];
      };
      const uint32_t down = word >> 15;
      store_eighths16(u.codes + 32 * b, point(0), point(1), down, down);
      store_eighths16(u.codes + 32 * b + 16, point(2), point(3), down, down);
    }
  }

  static constexpr Plane kCodePlanes[] = {{2, 48, 4}}, kScalePlanes[] = {{0, 2, 2}};
  static constexpr int kCodeMax = 18, kCodeOffset = 9;

  template <class V, class Out>
  KVANT_INLINE void expand(const PackedBlock<V>& in, Out&& out) {
    const auto d = in.scale_half(0);
    each<8>([&]<int b>() KVANT_LAMBDA {
      const auto points = in.code_word(b), word = in.code_word(8 + b / 2).template shr<16 * (b % 2)>();
      const auto s = word.template shr<12>() & V::splat_i(7);
      out.put_scale(b, d * V::to_f32(s + s + V::splat_i(1)) * V::splat(0.125f));
      const auto down = word.template shr<15>() & V::splat_i(1);
      each<4>([&]<int l>() KVANT_LAMBDA {
        const auto index = (points.template shr<8 * l>() & V::splat_i(255)) |
                           (word.template shr<3 * l>() & V::splat_i(7)).template shl<8>();
        put_eighths<V>(out, 8 * b + 2 * l, index, down);
      });
    });
  }
};

struct IQ1_M {
  static constexpr FormatInfo kInfo = {"iq1_m", 29, 256, 56, 16, false, false};
  static constexpr bool kHasMin = false;
  static constexpr const int8_t* kTable = nullptr;

  KVANT_INLINE uint16_t scale_bits(const uint8_t* block) {
    const uint8_t* s = block + 48;
    return uint16_t(s[1] >> 4 | (s[3] & 0xf0) | (s[5] & 0xf0) << 4 | (s[7] & 0xf0) << 8);
  }

  KVANT_INLINE void unpack(const uint8_t* block, UnpackedOf<IQ1_M>& u) {
    const float d = f16_to_f32(scale_bits(block));
    for (int g = 0; g < 16; ++g) {
      const uint32_t word = load_u16(block + 48 + 2 * (g / 4));
      u.scale[g] = d * float(2 * ((word >> (3 * (g % 4))) & 7) + 1) * 0.125f;
    }
    for (int g = 0; g < 16; ++g) {
      const uint32_t high = block[32 + g];
      const uint64_t first = kIq1s.point[block[2 * g] | (high & 7) << 8];
      const uint64_t second = kIq1s.point[block[2 * g + 1] | (high & 0x70) << 4];
      store_eighths16(u.codes + 16 * g, first, second, high >> 3 & 1, high >> 7);
    }
  }

  static constexpr Plane kCodePlanes[] = {{0, 48, 4}}, kScalePlanes[] = {{48, 8, 4}};
  static constexpr int kCodeMax = 18, kCodeOffset = 9;

  template <class V, class Out>
  KVANT_INLINE void expand(const PackedBlock<V>& in, Out&& out) {
    const typename V::I scales[2] = {in.scale_word(0), in.scale_word(4)};
    const auto half = (scales[0].template shr<12>() & V::splat_i(15)) | (scales[0].template shr<24>() & V::splat_i(0xf0)) |
                      (scales[1].template shr<4>() & V::splat_i(0xf00)) | (scales[1].template shr<16>() & V::splat_i(0xf000));
    const auto d = V::low_half(half);
    each<16>([&]<int g>() KVANT_LAMBDA {
      const auto s = scales[g / 8].template shr<16 * (g / 4 % 2) + 3 * (g % 4)>() & V::splat_i(7);
      out.put_scale(g, d * V::to_f32(s + s + V::splat_i(1)) * V::splat(0.125f));
      const auto points = in.code_word(g / 2).template shr<16 * (g % 2)>();
      const auto high = in.code_word(8 + g / 4).template shr<8 * (g % 4)>();
      const auto low = V::splat_i(255), seven = V::splat_i(0x700), one = V::splat_i(1);
      put_eighths<V>(out, 4 * g, (points & low) | (high.template shl<8>() & seven), high.template shr<3>() & one);
      put_eighths<V>(out, 4 * g + 2, (points.template shr<8>() & low) | (high.template shl<4>() & seven),
                     high.template shr<7>() & one);
    });
  }
};

}  // namespace kvant
