// q4_0: d f16, nibbles; y = d * (q - 8).   q4_1: d f16, m f16, nibbles; y = d * q + m.
// Byte j of the sixteen holds element j in its low nibble and element j + 16 in its high one.
#pragma once

#include "formats/bytes.h"
#include "formats/search.h"
#include "formats/tile.h"

namespace kvant {

// Codes from word `first` on become the nibbles of sixteen bytes from word `to` on; codes above 15 lose bits.
template <class V, class Codes, class Packed>
KVANT_INLINE void pack_nibbles32(const Codes& codes, int first, Packed& packed, int to) {
  const auto low = V::splat_i(0x0f0f0f0f);
  for (int k = 0; k < 4; ++k) {
    packed.set(to + k, (codes.word(first + k) & low) | (codes.word(first + k + 4) & low).template shl<4>());
  }
}

// Scale from the element of largest magnitude, which becomes -half; codes truncated after + half.
template <class V, int half, class Code>
KVANT_INLINE typename V::F legacy_symmetric(const float* x, Code&& put) {
  using S = Search<V>;
  using F = typename V::F;
  const F d = S::extreme(x, 32).value / V::splat(-float(half));
  const F id = V::select(d != S::zero(), V::splat(1.0f) / d, S::zero());
  const auto code = [&](int i) {
    const auto q = V::trunc(at<V>(x, i) * id + V::splat(half + 0.5f)) & V::splat_i(255);
    return V::imin(V::splat_i(2 * half - 1), q);
  };
  for (int i = 0; i < 32; i += 4) put(i / 4, code(i), code(i + 1), code(i + 2), code(i + 3));
  return d;
}

// Scale from the range; returns the minimum through m.
template <class V, int top, bool kClamp, class Code>
KVANT_INLINE typename V::F legacy_affine(const float* x, typename V::F& m, Code&& put) {
  using S = Search<V>;
  using F = typename V::F;
  // Of equal zeros of both signs the first stays: the halves are compared in order too.
  F low = at<V>(x, 0), high = low, low2 = at<V>(x, 16), high2 = low2;
  for (int i = 1; i < 16; ++i) {
    low = V::min(at<V>(x, i), low);
    high = V::max(at<V>(x, i), high);
    low2 = V::min(at<V>(x, i + 16), low2);
    high2 = V::max(at<V>(x, i + 16), high2);
  }
  low = V::min(low2, low);
  high = V::max(high2, high);
  const F d = (high - low) / V::splat(float(top));
  const F id = V::select(d != S::zero(), V::splat(1.0f) / d, S::zero());
  m = low;
  const auto code = [&](int i) {
    const auto q = V::trunc((at<V>(x, i) - low) * id + V::splat(0.5f)) & V::splat_i(255);
    return kClamp ? V::imin(V::splat_i(top), q) : q;
  };
  for (int i = 0; i < 32; i += 4) put(i / 4, code(i), code(i + 1), code(i + 2), code(i + 3));
  return d;
}

// With importance: ggml weighs by importance * sqrt(mean square of the row + x^2) and searches.
template <class V, int half, class Code>
KVANT_INLINE typename V::F weighted_symmetric(const Batch<V>& in, Code&& put) {
  using S = Search<V>;
  Tile<V, 32> weight;
  S::importance_weights(in.x, in.importance, in.row_mean_square, 32, weight);
  const auto s = S::template symmetric<32, half>(in.x, weight);
  const auto code = [&](int i) { return s.code(at<V>(in.x, i), half); };
  for (int i = 0; i < 32; i += 4) put(i / 4, code(i), code(i + 1), code(i + 2), code(i + 3));
  return s.scale;
}

template <class V, int top, class Code>
KVANT_INLINE typename V::F weighted_affine(const Batch<V>& in, typename V::F& m, Code&& put) {
  using S = Search<V>;
  Tile<V, 32> weight;
  S::importance_weights(in.x, in.importance, in.row_mean_square, 32, weight);
  const auto a = S::template affine<32, top, false>(in.x, weight, -0.9f, 0.05f, 36);
  const auto code = [&](int i) { return a.code(at<V>(in.x, i), top); };
  for (int i = 0; i < 32; i += 4) put(i / 4, code(i), code(i + 1), code(i + 2), code(i + 3));
  m = V::neg(a.min);
  return a.scale;
}

struct Q4_0 {
  static constexpr FormatInfo kInfo = {"q4_0", 2, 32, 18, 32, true, true};
  static constexpr bool kHasMin = false;
  static constexpr const int8_t* kTable = nullptr;
  static constexpr bool kRowMeanSquare = true;

  KVANT_INLINE void unpack(const uint8_t* block, UnpackedOf<Q4_0>& u) {
    u.scale[0] = load_f16_field(block);
    unpack_nibbles32(block + 2, u.codes, 8);
  }

  static constexpr Plane kCodePlanes[] = {{2, 16, 4}}, kScalePlanes[] = {{0, 2, 2}};
  static constexpr int kCodeMax = 15, kCodeOffset = 8;

  template <class V, class Out>
  KVANT_INLINE void expand(const PackedBlock<V>& in, Out&& out) {
    out.put_scale(0, in.scale_half(0));
    expand_nibbles32<V>(in, 0, out, 0);
  }

  template <class V, bool kWeighted>
  KVANT_INLINE void encode(const Batch<V>& in, uint8_t* out, int count) {
    ByteTile<V, 32> codes;
    const auto put = [&](int k, auto... c) { codes.put(k, c...); };
    typename V::F d;
    if constexpr (kWeighted) {
      d = weighted_symmetric<V, 8>(in, put);
    } else {
      d = legacy_symmetric<V, 8>(in.x, put);
    }
    ByteTile<V, 16> packed;
    pack_nibbles32<V>(codes, 0, packed, 0);
    packed.finish();
    const LaneHalves<V> halves(d);
    for (int lane = 0; lane < count; ++lane, out += 18) {
      store_u16(out, halves[lane]);
      packed.read(lane, out + 2);
    }
  }
};

struct Q4_1 {
  static constexpr FormatInfo kInfo = {"q4_1", 3, 32, 20, 32, true, true};
  static constexpr bool kHasMin = true;
  static constexpr const int8_t* kTable = nullptr;
  static constexpr bool kRowMeanSquare = true;

  KVANT_INLINE void unpack(const uint8_t* block, UnpackedOf<Q4_1>& u) {
    u.scale[0] = load_f16_field(block);
    u.min[0] = -load_f16_field(block + 2);
    unpack_nibbles32(block + 4, u.codes);
  }

  static constexpr Plane kCodePlanes[] = {{4, 16, 4}}, kScalePlanes[] = {{0, 4, 4}};
  static constexpr int kCodeMax = 15, kCodeOffset = 0;

  template <class V, class Out>
  KVANT_INLINE void expand(const PackedBlock<V>& in, Out&& out) {
    const auto dm = in.scale_word(0);
    out.put_scale(0, V::low_half(dm));
    out.put_neg_min(0, V::low_half(dm.template shr<16>()));
    expand_nibbles32<V>(in, 0, out, 0);
  }

  template <class V, bool kWeighted>
  KVANT_INLINE void encode(const Batch<V>& in, uint8_t* out, int count) {
    ByteTile<V, 32> codes;
    const auto put = [&](int k, auto... c) { codes.put(k, c...); };
    typename V::F d, m;
    if constexpr (kWeighted) {
      d = weighted_affine<V, 15>(in, m, put);
    } else {
      d = legacy_affine<V, 15, true>(in.x, m, put);
    }
    ByteTile<V, 16> packed;
    pack_nibbles32<V>(codes, 0, packed, 0);
    packed.finish();
    const LaneHalves<V> scales(d), minima(m);
    for (int lane = 0; lane < count; ++lane, out += 20) {
      store_u16(out, scales[lane]);
      store_u16(out + 2, minima[lane]);
      packed.read(lane, out + 4);
    }
  }
};

}  // namespace kvant
