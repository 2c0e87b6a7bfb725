// q1_0: blocks of 128, d f16 and one sign bit an element;  y = bit ? d : -d.
// q2_0: blocks of 64, d f16 and two bits an element, lowest first;  y = (q - 1) * d.
#pragma once

#include "formats/search.h"

namespace kvant {

struct Q1_0 {
  static constexpr FormatInfo kInfo = {"q1_0", 41, 128, 18, 32, true, false};
  static constexpr bool kHasMin = false;
  static constexpr const int8_t* kTable = nullptr;

  KVANT_INLINE void unpack(const uint8_t* block, UnpackedOf<Q1_0>& u) {
    const float d = load_f16_field(block);
    for (int g = 0; g < 4; ++g) u.scale[g] = d;
    for (int i = 0; i < 128; ++i) u.codes[i] = int8_t(((block[2 + i / 8] >> (i % 8)) & 1) * 2 - 1);
  }

  template <class V, bool kWeighted>
  KVANT_INLINE void encode(const Batch<V>& in, uint8_t* out, int count) {
    using S = Search<V>;
    typename V::F sum = S::zero();
    for (int i = 0; i < 128; ++i) sum = sum + V::abs(at<V>(in.x, i));
    const LaneHalves<V> halves(sum * V::splat(1.0f / 128));
    CodeTile<V, 128> codes;
    const auto bit = [&](int i) {
      return V::select(at<V>(in.x, i) >= S::zero(), V::splat_i(1), V::splat_i(0));
    };
    for (int i = 0; i < 128; i += 4) codes.put(i / 4, bit(i), bit(i + 1), bit(i + 2), bit(i + 3));
    codes.finish();
    for (int lane = 0; lane < count; ++lane, out += 18) {
      uint8_t c[128];
      codes.read(lane, c);
      store_u16(out, halves[lane]);
      for (int j = 0; j < 16; ++j) {
        // Eight bytes of 0 or 1 gathered into one by a multiplication.
        out[2 + j] = uint8_t((load_u64(c + 8 * j) * 0x0102040810204080u) >> 56);
      }
    }
  }
};

struct Q2_0 {
  static constexpr FormatInfo kInfo = {"q2_0", 42, 64, 18, 32, true, false};
  static constexpr bool kHasMin = false;
  static constexpr const int8_t* kTable = nullptr;

  KVANT_INLINE void unpack(const uint8_t* block, UnpackedOf<Q2_0>& u) {
    u.scale[0] = u.scale[1] = load_f16_field(block);
    for (int i = 0; i < 64; ++i) u.codes[i] = int8_t(((block[2 + i / 4] >> (2 * (i % 4))) & 3) - 1);
  }

  template <class V, bool kWeighted>
  KVANT_INLINE void encode(const Batch<V>& in, uint8_t* out, int count) {
    using S = Search<V>;
    using F = typename V::F;
    F d = S::zero();
    for (int i = 0; i < 64; ++i) d = V::max(V::abs(at<V>(in.x, i)), d);
    const F id = V::select(d > S::zero(), V::splat(1.0f) / d, S::zero());
    CodeTile<V, 64> codes;
    const auto code = [&](int i) {
      return S::clamp(S::round_away(at<V>(in.x, i) * id) + V::splat_i(1), 0, 3);
    };
    for (int i = 0; i < 64; i += 4) codes.put(i / 4, code(i), code(i + 1), code(i + 2), code(i + 3));
    codes.finish();
    const LaneHalves<V> halves(d);
    for (int lane = 0; lane < count; ++lane, out += 18) {
      uint8_t c[64];
      codes.read(lane, c);
      store_u16(out, halves[lane]);
      for (int j = 0; j < 16; ++j) {
        out[2 + j] = uint8_t(c[4 * j] | c[4 * j + 1] << 2 | c[4 * j + 2] << 4 | c[4 * j + 3] << 6);
      }
    }
  }
};

}  // namespace kvant
