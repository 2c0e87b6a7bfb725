// q5_0: d f16, fifth bits u32, nibbles; y = d * (q - 16).
// q5_1: d f16, m f16, fifth bits u32, nibbles; y = d * q + m.
// Bit j of the fifth bits belongs to element j; nibbles lie as in q4_0.
#pragma once

#include "formats/q4.h"

namespace kvant {

// 32 bits, one per element, to bytes of 0 or 16 and back.
KVANT_INLINE void add_fifth_bits(const uint8_t* bits, int8_t* codes) {
  for (int j = 0; j < 32; ++j) codes[j] = int8_t(codes[j] | ((bits[j / 8] >> (j % 8)) & 1) << 4);
}

KVANT_INLINE uint32_t gather_fifth_bits(const uint8_t* codes) {
  uint32_t bits = 0;
  for (int j = 0; j < 32; j += 8) {
    // Bit 4 of eight bytes moved to the top byte by one multiplication.
    const uint64_t ones = (load_u64(codes + j) >> 4) & 0x0101010101010101u;
    bits |= uint32_t((ones * 0x0102040810204080u) >> 56) << j;
  }
  return bits;
}

KVANT_INLINE void pack_low_nibbles32(const uint8_t* codes, uint8_t* packed) {
  for (int j = 0; j < 16; ++j) packed[j] = uint8_t((codes[j] & 15) | (codes[j + 16] & 15) << 4);
}

struct Q5_0 {
  static constexpr FormatInfo kInfo = {"q5_0", 6, 32, 22, 32, true, true};
  static constexpr bool kHasMin = false;
  static constexpr const int8_t* kTable = nullptr;
  static constexpr bool kRowMeanSquare = true;

  KVANT_INLINE void unpack(const uint8_t* block, UnpackedOf<Q5_0>& u) {
    u.scale[0] = load_f16_field(block);
    unpack_nibbles32(block + 6, u.codes);
    add_fifth_bits(block + 2, u.codes);
    for (int j = 0; j < 32; ++j) u.codes[j] = int8_t(u.codes[j] - 16);
  }

  template <class V, bool kWeighted>
  KVANT_INLINE void encode(const Batch<V>& in, uint8_t* out, int count) {
    CodeTile<V, 32> codes;
    const auto put = [&](int k, auto... c) { codes.put(k, c...); };
    typename V::F d;
    if constexpr (kWeighted) {
      d = weighted_symmetric<V, 16>(in, put);
    } else {
      d = legacy_symmetric<V, 16>(in.x, put);
    }
    codes.finish();
    const LaneHalves<V> halves(d);
    for (int lane = 0; lane < count; ++lane, out += 22) {
      uint8_t c[32];
      codes.read(lane, c);
      store_u16(out, halves[lane]);
      store_u32(out + 2, gather_fifth_bits(c));
      pack_low_nibbles32(c, out + 6);
    }
  }
};

struct Q5_1 {
  static constexpr FormatInfo kInfo = {"q5_1", 7, 32, 24, 32, true, true};
  static constexpr bool kHasMin = true;
  static constexpr const int8_t* kTable = nullptr;
  static constexpr bool kRowMeanSquare = true;

  KVANT_INLINE void unpack(const uint8_t* block, UnpackedOf<Q5_1>& u) {
    u.scale[0] = load_f16_field(block);
    u.min[0] = -load_f16_field(block + 2);
    unpack_nibbles32(block + 8, u.codes);
    add_fifth_bits(block + 4, u.codes);
  }

  template <class V, bool kWeighted>
  KVANT_INLINE void encode(const Batch<V>& in, uint8_t* out, int count) {
    CodeTile<V, 32> codes;
    const auto put = [&](int k, auto... c) { codes.put(k, c...); };
    typename V::F d, m;
    if constexpr (kWeighted) {
      d = weighted_affine<V, 31>(in, m, put);
    } else {
      d = legacy_affine<V, 31, false>(in.x, m, put);
    }
    codes.finish();
    const LaneHalves<V> scales(d), minima(m);
    for (int lane = 0; lane < count; ++lane, out += 24) {
      uint8_t c[32];
      codes.read(lane, c);
      store_u16(out, scales[lane]);
      store_u16(out + 2, minima[lane]);
      store_u32(out + 4, gather_fifth_bits(c));
      pack_low_nibbles32(c, out + 8);
    }
  }
};

}  // namespace kvant
