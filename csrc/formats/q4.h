// q4_0: d f16, nibbles; y = d * (q - 8).   q4_1: d f16, m f16, nibbles; y = d * q + m.
// Byte j of the sixteen holds element j in its low nibble and element j + 16 in its high one.
#pragma once

#include "formats/search.h"

namespace kvant {

KVANT_INLINE void unpack_nibbles32(const uint8_t* packed, int8_t* codes) {
  for (int j = 0; j < 16; ++j) {
    codes[j] = int8_t(packed[j] & 15);
    codes[j + 16] = int8_t(packed[j] >> 4);
  }
}

KVANT_INLINE void pack_nibbles32(const uint8_t* codes, uint8_t* packed) {
  for (int j = 0; j < 16; ++j) packed[j] = uint8_t(codes[j] | codes[j + 16] << 4);
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
  F low = V::splat(__FLT_MAX__), high = V::splat(-__FLT_MAX__);
  for (int i = 0; i < 32; ++i) {
    low = V::min(at<V>(x, i), low);
    high = V::max(at<V>(x, i), high);
  }
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
  alignas(64) float weight[32 * 16];
  S::importance_weights(in.x, in.importance, in.row_mean_square, 32, weight);
  const auto s = S::template symmetric<32, half>(in.x, weight);
  const auto code = [&](int i) { return s.code(at<V>(in.x, i), half); };
  for (int i = 0; i < 32; i += 4) put(i / 4, code(i), code(i + 1), code(i + 2), code(i + 3));
  return s.scale;
}

template <class V, int top, class Code>
KVANT_INLINE typename V::F weighted_affine(const Batch<V>& in, typename V::F& m, Code&& put) {
  using S = Search<V>;
  alignas(64) float weight[32 * 16];
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
    for (int j = 0; j < 16; ++j) {
      u.codes[j] = int8_t((block[2 + j] & 15) - 8);
      u.codes[j + 16] = int8_t((block[2 + j] >> 4) - 8);
    }
  }

  template <class V, bool kWeighted>
  KVANT_INLINE void encode(const Batch<V>& in, uint8_t* out, int count) {
    CodeTile<V, 32> codes;
    const auto put = [&](int k, auto... c) { codes.put(k, c...); };
    typename V::F d;
    if constexpr (kWeighted) {
      d = weighted_symmetric<V, 8>(in, put);
    } else {
      d = legacy_symmetric<V, 8>(in.x, put);
    }
    codes.finish();
    const LaneHalves<V> halves(d);
    for (int lane = 0; lane < count; ++lane, out += 18) {
      uint8_t c[32];
      codes.read(lane, c);
      store_u16(out, halves[lane]);
      pack_nibbles32(c, out + 2);
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

  template <class V, bool kWeighted>
  KVANT_INLINE void encode(const Batch<V>& in, uint8_t* out, int count) {
    CodeTile<V, 32> codes;
    const auto put = [&](int k, auto... c) { codes.put(k, c...); };
    typename V::F d, m;
    if constexpr (kWeighted) {
      d = weighted_affine<V, 15>(in, m, put);
    } else {
      d = legacy_affine<V, 15, true>(in.x, m, put);
    }
    codes.finish();
    const LaneHalves<V> scales(d), minima(m);
    for (int lane = 0; lane < count; ++lane, out += 20) {
      uint8_t c[32];
      codes.read(lane, c);
      store_u16(out, scales[lane]);
      store_u16(out + 2, minima[lane]);
      pack_nibbles32(c, out + 4);
    }
  }
};

}  // namespace kvant
