// q1_0: blocks of 128, d f16 and one sign bit an element;  y = bit ? d : -d.
// q2_0: blocks of 64, d f16 and two bits an element, lowest first;  y = (q - 1) * d.
#pragma once

#include "formats/bytes.h"
#include "formats/search.h"
#include "formats/tile.h"

namespace kvant {

struct Q1_0 {
  static constexpr FormatInfo kInfo = {"q1_0", 41, 128, 18, 32, true, false};
  static constexpr bool kHasMin = false;
  static constexpr const int8_t* kTable = nullptr;

  KVANT_INLINE void unpack(const uint8_t* block, UnpackedOf<Q1_0>& u) {
    const float d = load_f16_field(block);
    for (int g = 0; g < 4; ++g) u.scale[g] = d;
    for (int j = 0; j < 8; ++j) store_codes16(u.codes + 16 * j, (spread_bits16(block[2 + 2 * j], block[3 + 2 * j]) & 2) - 1);
  }

  static constexpr Plane kCodePlanes[] = {{2, 16, 4}}, kScalePlanes[] = {{0, 2, 2}};
  static constexpr int kCodeMax = 2, kCodeOffset = 1;

  template <class V, class Out>
  KVANT_INLINE void expand(const PackedBlock<V>& in, Out&& out) {
    const auto d = in.scale_half(0);
    each_place<V, 4>([&](int g) KVANT_LAMBDA {
      out.put_scale(g, d);
      auto bits = in.code_word(g);
      each_place<V, 8>([&](int k) KVANT_LAMBDA {
        out.put(8 * g + k, spread_four_bits<V>(bits).template shl<1>());
        bits = bits.template shr<4>();
      });
    });
  }

  template <class V, bool kWeighted>
  KVANT_INLINE void encode(const Batch<V>& in, uint8_t* out, int count) {
    using S = Search<V>;
    typename V::F sum = S::zero();
    for (int i = 0; i < 128; ++i) sum = sum + V::abs(at<V>(in.x, i));
    const LaneHalves<V> halves(sum * V::splat(1.0f / 128));
    ByteTile<V, 16> bits;
    for (int k = 0; k < 4; ++k) {
      auto word = V::splat_i(0);
      for (int i = 31; i >= 0; --i) {
        const auto bit = V::select(at<V>(in.x, 32 * k + i) >= S::zero(), V::splat_i(1), V::splat_i(0));
        word = word.template shl<1>() | bit;
      }
      bits.set(k, word);
    }
    bits.finish();
    for (int lane = 0; lane < count; ++lane, out += 18) {
      store_u16(out, halves[lane]);
      bits.read(lane, out + 2);
    }
  }
};

struct Q2_0 {
  static constexpr FormatInfo kInfo = {"q2_0", 42, 64, 18, 32, true, false};
  static constexpr bool kHasMin = false;
  static constexpr const int8_t* kTable = nullptr;

  KVANT_INLINE void unpack(const uint8_t* block, UnpackedOf<Q2_0>& u) {
    u.scale[0] = u.scale[1] = load_f16_field(block);
    const Bytes16 packed = load_bytes16(block + 2);
    unpack_quarter<0>(packed, u.codes);
    unpack_quarter<4>(packed, u.codes);
    unpack_quarter<8>(packed, u.codes);
    unpack_quarter<12>(packed, u.codes);
  }

  // Bytes b .. b + 3: each four times, one of its pairs kept in each copy and moved down.
  template <int b>
  KVANT_INLINE void unpack_quarter(Bytes16 packed, int8_t* codes) {
    const Bytes16 keep = {3, 12, 48, 192, 3, 12, 48, 192, 3, 12, 48, 192, 3, 12, 48, 192};
    const Bytes16 v = keep & __builtin_shufflevector(packed, packed, b, b, b, b, b + 1, b + 1, b + 1, b + 1, b + 2,
                                                     b + 2, b + 2, b + 2, b + 3, b + 3, b + 3, b + 3);
    store_codes16(codes + 4 * b, ((v | v >> 2 | v >> 4 | v >> 6) & 3) - 1);
  }

  static constexpr Plane kCodePlanes[] = {{2, 16, 4}}, kScalePlanes[] = {{0, 2, 2}};
  static constexpr int kCodeMax = 3, kCodeOffset = 1;

  template <class V, class Out>
  KVANT_INLINE void expand(const PackedBlock<V>& in, Out&& out) {
    const auto d = in.scale_half(0);
    out.put_scale(0, d);
    out.put_scale(1, d);
    each_place<V, 4>([&](int i) KVANT_LAMBDA {
      each_byte<V>(in.code_word(i), [&](int j, auto b) KVANT_LAMBDA {
        const auto spread = (b | b.template shl<6>()) | (b.template shl<12>() | b.template shl<18>());
        out.put(4 * i + j, spread & splat_bytes<V>(3));
      });
    });
  }

  template <class V, bool kWeighted>
  KVANT_INLINE void encode(const Batch<V>& in, uint8_t* out, int count) {
    using S = Search<V>;
    using F = typename V::F;
    const F d = S::largest(in.x, 64);
    const F id = V::select(d > S::zero(), V::splat(1.0f) / d, S::zero());
    ByteTile<V, 16> packed;
    const auto code = [&](int i) {
      return S::clamp(S::round_away(at<V>(in.x, i) * id) + V::splat_i(1), 0, 3);
    };
    for (int k = 0; k < 4; ++k) {
      auto word = V::splat_i(0);
      for (int i = 15; i >= 0; --i) word = word.template shl<2>() | code(16 * k + i);
      packed.set(k, word);
    }
    packed.finish();
    const LaneHalves<V> halves(d);
    for (int lane = 0; lane < count; ++lane, out += 18) {
      store_u16(out, halves[lane]);
      packed.read(lane, out + 2);
    }
  }
};

}  // namespace kvant
