// q5_0: d f16, fifth bits u32, nibbles; y = d * (q - 16).
// q5_1: d f16, m f16, fifth bits u32, nibbles; y = d * q + m.
// Bit j of the fifth bits belongs to element j; nibbles lie as in q4_0.
#pragma once

#include "formats/q4.h"

namespace kvant {

// Nibbles and fifth bits to 32 codes, less the bias.
KVANT_INLINE void unpack_five_bits32(const uint8_t* fifth, const uint8_t* packed, int8_t* codes, uint8_t bias) {
  const Bytes16 v = load_bytes16(packed);
  store_codes16(codes, ((v & 15) | (spread_bits16(fifth[0], fifth[1]) & 16)) - bias);
  store_codes16(codes + 16, ((v >> 4) | (spread_bits16(fifth[2], fifth[3]) & 16)) - bias);
}

// Bit 4 of 32 codes, element j at bit j.
template <class V, class Codes>
KVANT_INLINE typename V::I gather_fifth_bits(const Codes& codes) {
  auto bits = V::splat_i(0);
  const auto gather = [&](auto word) {
    // One bit in each byte, drawn together into the low four.
    const auto ones = word.template shr<4>() & V::splat_i(0x01010101);
    const auto pairs = ones | ones.template shr<7>();
    return (pairs | pairs.template shr<14>()) & V::splat_i(15);
  };
  for (int k = 7; k >= 0; --k) bits = bits.template shl<4>() | gather(codes.word(k));
  return bits;
}

// Nibbles in code words 0 .. 3, their fifth bits in word 4.
template <class V, class Out>
KVANT_INLINE void expand_five_bits32(const PackedBlock<V>& in, Out&& out) {
  const auto fifth = in.code_word(4), low = splat_bytes<V>(15);
  const auto put = [&](int k, auto nibbles, auto bits) KVANT_LAMBDA {
    out.put(k, nibbles | spread_four_bits<V>(bits).template shl<4>());
  };
  const auto two = [&](int i, auto bits, auto bits16) KVANT_LAMBDA {
    const auto w = in.code_word(i);
    put(i, w & low, bits);
    put(4 + i, w.template shr<4>() & low, bits16);
  };
  two(0, fifth, fifth.template shr<16>());
  two(1, fifth.template shr<4>(), fifth.template shr<20>());
  two(2, fifth.template shr<8>(), fifth.template shr<24>());
  two(3, fifth.template shr<12>(), fifth.template shr<28>());
}

struct Q5_0 {
  static constexpr FormatInfo kInfo = {"q5_0", 6, 32, 22, 32, true, true};
  static constexpr bool kHasMin = false;
  static constexpr const int8_t* kTable = nullptr;
  static constexpr bool kRowMeanSquare = true;

  KVANT_INLINE void unpack(const uint8_t* block, UnpackedOf<Q5_0>& u) {
    u.scale[0] = load_f16_field(block);
    unpack_five_bits32(block + 2, block + 6, u.codes, 16);
  }

  static constexpr Plane kCodePlanes[] = {{6, 16, 4}, {2, 4, 4}}, kScalePlanes[] = {{0, 2, 2}};
  static constexpr int kCodeMax = 31, kCodeOffset = 16;

  template <class V, class Out>
  KVANT_INLINE void expand(const PackedBlock<V>& in, Out&& out) {
    out.put_scale(0, in.scale_half(0));
    expand_five_bits32<V>(in, out);
  }

  template <class V, bool kWeighted>
  KVANT_INLINE void encode(const Batch<V>& in, uint8_t* out, int count) {
    ByteTile<V, 32> codes;
    const auto put = [&](int k, auto... c) { codes.put(k, c...); };
    typename V::F d;
    if constexpr (kWeighted) {
      d = weighted_symmetric<V, 16>(in, put);
    } else {
      d = legacy_symmetric<V, 16>(in.x, put);
    }
    ByteTile<V, 16> packed;
    pack_nibbles32<V>(codes, 0, packed, 0);
    packed.finish();
    alignas(64) int32_t fifth[16];
    V::store_i(fifth, gather_fifth_bits<V>(codes));
    const LaneHalves<V> halves(d);
    for (int lane = 0; lane < count; ++lane, out += 22) {
      store_u16(out, halves[lane]);
      store_u32(out + 2, uint32_t(fifth[lane]));
      packed.read(lane, out + 6);
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
    unpack_five_bits32(block + 4, block + 8, u.codes, 0);
  }

  static constexpr Plane kCodePlanes[] = {{8, 16, 4}, {4, 4, 4}}, kScalePlanes[] = {{0, 4, 4}};
  static constexpr int kCodeMax = 31, kCodeOffset = 0;

  template <class V, class Out>
  KVANT_INLINE void expand(const PackedBlock<V>& in, Out&& out) {
    const auto dm = in.scale_word(0);
    out.put_scale(0, V::low_half(dm));
    out.put_neg_min(0, V::low_half(dm.template shr<16>()));
    expand_five_bits32<V>(in, out);
  }

  template <class V, bool kWeighted>
  KVANT_INLINE void encode(const Batch<V>& in, uint8_t* out, int count) {
    ByteTile<V, 32> codes;
    const auto put = [&](int k, auto... c) { codes.put(k, c...); };
    typename V::F d, m;
    if constexpr (kWeighted) {
      d = weighted_affine<V, 31>(in, m, put);
    } else {
      d = legacy_affine<V, 31, false>(in.x, m, put);
    }
    ByteTile<V, 16> packed;
    pack_nibbles32<V>(codes, 0, packed, 0);
    packed.finish();
    alignas(64) int32_t fifth[16];
    V::store_i(fifth, gather_fifth_bits<V>(codes));
    const LaneHalves<V> scales(d), minima(m);
    for (int lane = 0; lane < count; ++lane, out += 24) {
      store_u16(out, scales[lane]);
      store_u16(out + 2, minima[lane]);
      store_u32(out + 4, uint32_t(fifth[lane]));
      packed.read(lane, out + 8);
    }
  }
};

}  // namespace kvant
