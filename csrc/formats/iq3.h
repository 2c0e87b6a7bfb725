// iq3_xxs, iq3_s: 256 weights as points of a code book with four coordinates, signs apart.
// iq3_xxs: d f16, points[64], per 32 weights u32 of four 7-bit sign words and s;
//          y = d * (0.5 + s) / 2 * (+-point).
// iq3_s:   d f16, points low[64], points high bits[8], signs[32], s nibbles[4];
//          y = d * (1 + 2 s) * (+-point).
#pragma once

#include "formats/iq2.h"

namespace kvant {

struct IQ3_XXS {
  static constexpr FormatInfo kInfo = {"iq3_xxs", 18, 256, 98, 32, false, false};
  static constexpr bool kHasMin = false;
  static constexpr const int8_t* kTable = nullptr;

  KVANT_INLINE void unpack(const uint8_t* block, UnpackedOf<IQ3_XXS>& u) {
    const float d = load_f16_field(block);
    for (int b = 0; b < 8; ++b) {
      const uint8_t* p = block + 2 + 8 * b;
      const uint32_t word = load_u32(block + 66 + 4 * b);
      u.scale[b] = half_step(d, int(word >> 28), 0.5f);
      const auto point = [&](int l) KVANT_LAMBDA {
        return kIq3xxs.point[p[2 * l]] | uint64_t(kIq3xxs.point[p[2 * l + 1]]) << 32;
      };
      for (int l = 0; l < 4; l += 2) {
        store_signed16(u.codes + 32 * b + 8 * l, point(l), point(l + 1), even_signs(word >> (7 * l)),
                       even_signs(word >> (7 * l + 7)));
      }
    }
  }

  static constexpr Plane kCodePlanes[] = {{2, 96, 4}}, kScalePlanes[] = {{0, 2, 2}};
  static constexpr int kCodeMax = 127, kCodeOffset = 64;

  template <class V>
  KVANT_INLINE void expand(const PackedBlock<V>& in, const TileBlock<V>& out) {
    const auto d = in.scale_half(0);
    for (int b = 0; b < 8; ++b) {
      const auto word = in.code_word(16 + b);
      out.put_scale(b, half_steps<V>(d, word.template shr<28>(), 0.5f));
      each<8>([&]<int j>() KVANT_LAMBDA {
        const auto index = in.code_word(2 * b + j / 4).template shr<8 * (j % 4)>() & V::splat_i(255);
        const auto signs = with_parity<V>(word.template shr<7 * (j / 2)>()).template shr<4 * (j % 2)>();
        out.put(8 * b + j, signed_codes<V>(V::gather(kIq3xxs.point, index), signs));
      });
    }
  }
};

struct IQ3_S {
  static constexpr FormatInfo kInfo = {"iq3_s", 21, 256, 110, 32, false, false};
  static constexpr bool kHasMin = false;
  static constexpr const int8_t* kTable = nullptr;

  KVANT_INLINE void unpack(const uint8_t* block, UnpackedOf<IQ3_S>& u) {
    const float d = load_f16_field(block);
    for (int b = 0; b < 8; ++b) {
      const uint8_t* p = block + 2 + 8 * b;
      const int high = block[66 + b];
      u.scale[b] = d * float(1 + 2 * ((block[106 + b / 2] >> (4 * (b % 2))) & 15));
      const auto point = [&](int l) KVANT_LAMBDA {
        const int first = p[2 * l] | ((high >> (2 * l)) & 1) << 8;
        const int second = p[2 * l + 1] | ((high >> (2 * l + 1)) & 1) << 8;
        return kIq3s.point[first] | uint64_t(kIq3s.point[second]) << 32;
      };
      for (int l = 0; l < 4; l += 2) {
        store_signed16(u.codes + 32 * b + 8 * l, point(l), point(l + 1), block[74 + 4 * b + l],
                       block[75 + 4 * b + l]);
      }
    }
  }

  static constexpr Plane kCodePlanes[] = {{2, 104, 4}}, kScalePlanes[] = {{106, 4, 4}, {0, 2, 2}};
  static constexpr int kCodeMax = 127, kCodeOffset = 64;

  template <class V>
  KVANT_INLINE void expand(const PackedBlock<V>& in, const TileBlock<V>& out) {
    const auto d = in.scale_half(4);
    const auto nibbles = in.scale_word(0);
    each<8>([&]<int b>() KVANT_LAMBDA {
      const auto code = nibbles.template shr<4 * b>() & V::splat_i(15);
      out.put_scale(b, d * V::to_f32(code + code + V::splat_i(1)));
      const auto high = in.code_word(16 + b / 4).template shr<8 * (b % 4)>(), signs = in.code_word(18 + b);
      each<8>([&]<int j>() KVANT_LAMBDA {
        const auto low = in.code_word(2 * b + j / 4).template shr<8 * (j % 4)>() & V::splat_i(255);
        const auto index = low | (high.template shl<8 - j>() & V::splat_i(0x100));
        out.put(8 * b + j, signed_codes<V>(V::gather(kIq3s.point, index), signs.template shr<4 * j>()));
      });
    });
  }
};

}  // namespace kvant
