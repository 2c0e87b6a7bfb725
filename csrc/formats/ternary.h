// tq2_0: pairs[64], d f16; element 128h + 32t + l is bit pair t of byte 32h + l;  y = (q - 1) * d.
// tq1_0: trits, five to a byte: bytes[48], bytes of four[4], d f16. A byte holds the base-3 number
// scaled to 256; digit n is the top of byte * 3^n mod 256 times 3. The first 32 bytes cover 160
// elements (digit n of byte m is element 32n + m), the next 16 bytes 80, the last four 16.
#pragma once

#include "formats/k_scales.h"

namespace kvant {

// Scale = largest magnitude; returns the codes 0, 1, 2 through put.
template <class V, class Put>
KVANT_INLINE typename V::F encode_ternary(const float* x, Put&& put) {
  using S = Search<V>;
  using F = typename V::F;
  const F d = S::largest(x, 256);
  const F id = V::select(d != S::zero(), V::splat(1.0f) / d, S::zero());
  const auto code = [&](int i) { return S::round_away(at<V>(x, i) * id) + V::splat_i(1); };
  for (int i = 0; i < 256; i += 4) put(i / 4, code(i), code(i + 1), code(i + 2), code(i + 3));
  return d;
}

struct TQ2_0 {
  static constexpr FormatInfo kInfo = {"tq2_0", 35, 256, 66, 32, true, false};
  static constexpr bool kHasMin = false;
  static constexpr const int8_t* kTable = nullptr;

  KVANT_INLINE void unpack(const uint8_t* block, UnpackedOf<TQ2_0>& u) {
    const float d = load_f16_field(block + 64);
    for (int g = 0; g < 8; ++g) u.scale[g] = d;
    unpack_pairs256(block, u.codes);
    for (int i = 0; i < 256; ++i) u.codes[i] = int8_t(u.codes[i] - 1);
  }

  static constexpr Plane kCodePlanes[] = {{0, 64, 4}}, kScalePlanes[] = {{64, 2, 2}};
  static constexpr int kCodeMax = 3, kCodeOffset = 1;

  template <class V, class Out>
  KVANT_INLINE void expand(const PackedBlock<V>& in, Out&& out) {
    const auto d = in.scale_half(0);
    each_place<V, 8>([&](int g) KVANT_LAMBDA { out.put_scale(g, d); });
    expand_pairs256<V>(in, 0, out);
  }

  template <class V, bool kWeighted>
  KVANT_INLINE void encode(const Batch<V>& in, uint8_t* out, int count) {
    ByteTile<V, 256> codes;
    const LaneHalves<V> halves(encode_ternary<V>(in.x, [&](int k, auto... c) { codes.put(k, c...); }));
    ByteTile<V, 64> packed;
    pack_pairs256(codes, packed);
    packed.finish();
    for (int lane = 0; lane < count; ++lane, out += 66) {
      packed.read(lane, out);
      store_u16(out + 64, halves[lane]);
    }
  }
};

struct TQ1_0 {
  static constexpr FormatInfo kInfo = {"tq1_0", 34, 256, 54, 32, true, false};
  static constexpr bool kHasMin = false;
  static constexpr const int8_t* kTable = nullptr;

  // kDigits digits of `bytes` bytes; digit n of byte m is code n * bytes + m.
  template <int kDigits, int bytes>
  KVANT_INLINE void unpack_trits(const uint8_t* packed, int8_t* codes) {
    constexpr uint8_t kPowers[5] = {1, 3, 9, 27, 81};
    for (int n = 0; n < kDigits; ++n) {
      for (int m = 0; m < bytes; ++m) {
        const uint8_t shifted = uint8_t(packed[m] * kPowers[n]);
        codes[n * bytes + m] = int8_t((uint16_t(shifted * 3) >> 8) - 1);
      }
    }
  }

  template <int kDigits, int bytes>
  KVANT_INLINE void pack_trits(const uint8_t* codes, uint8_t* packed) {
    for (int m = 0; m < bytes; ++m) {
      uint8_t q = 0;
      for (int n = 0; n < 5; ++n) q = uint8_t(q * 3 + (n < kDigits ? codes[n * bytes + m] : 0));
      packed[m] = uint8_t((uint16_t(q) * 256 + 242) / 243);
    }
  }

  KVANT_INLINE void unpack(const uint8_t* block, UnpackedOf<TQ1_0>& u) {
    const float d = load_f16_field(block + 52);
    for (int g = 0; g < 8; ++g) u.scale[g] = d;
    unpack_trits<5, 32>(block, u.codes);
    unpack_trits<5, 16>(block + 32, u.codes + 160);
    unpack_trits<4, 4>(block + 48, u.codes + 240);
  }

  static constexpr Plane kCodePlanes[] = {{0, 52, 4}}, kScalePlanes[] = {{52, 2, 2}};
  static constexpr int kCodeMax = 2, kCodeOffset = 1;

  // The digits of the four bytes of a word, two bytes to a multiplication by three; digit n goes to
  // word k + n * step.
  template <class V, int kDigits, class Out>
  KVANT_INLINE void expand_trits(typename V::I w, Out&& out, int k, int step) {
    const auto low = V::splat_i(0x00ff00ff);
    auto even = w & low, odd = w.template shr<8>() & low;
    each<kDigits>([&]<int n>() KVANT_LAMBDA {
      even = even + even.template shl<1>();
      odd = odd + odd.template shl<1>();
      out.put(k + n * step, (even.template shr<8>() & low) | (odd & V::splat_i(int32_t(0xff00ff00u))));
      even = even & low;
      odd = odd & low;
    });
  }

  template <class V, class Out>
  KVANT_INLINE void expand(const PackedBlock<V>& in, Out&& out) {
    const auto d = in.scale_half(0);
    each_place<V, 8>([&](int g) KVANT_LAMBDA { out.put_scale(g, d); });
    each_place<V, 8>([&](int i) KVANT_LAMBDA { expand_trits<V, 5>(in.code_word(i), out, i, 8); });
    each_place<V, 4>([&](int i) KVANT_LAMBDA { expand_trits<V, 5>(in.code_word(8 + i), out, 40 + i, 4); });
    expand_trits<V, 4>(in.code_word(12), out, 60, 1);
  }

  template <class V, bool kWeighted>
  KVANT_INLINE void encode(const Batch<V>& in, uint8_t* out, int count) {
    ByteTile<V, 256> codes;
    const LaneHalves<V> halves(encode_ternary<V>(in.x, [&](int k, auto... c) { codes.put(k, c...); }));
    codes.finish();
    for (int lane = 0; lane < count; ++lane, out += 54) {
      uint8_t c[256];
      codes.read(lane, c);
      pack_trits<5, 32>(c, out);
      pack_trits<5, 16>(c + 160, out + 32);
      pack_trits<4, 4>(c + 240, out + 48);
      store_u16(out + 52, halves[lane]);
    }
  }
};

}  // namespace kvant
