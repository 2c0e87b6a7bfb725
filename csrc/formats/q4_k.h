// q4_k and q5_k: super-blocks of 256 in eight sub-blocks of 32, each with a 6-bit scale and a
// 6-bit minimum.  y = (d * sc) * q - (dmin * m).
// q4_k: d f16, dmin f16, scales[12], nibbles[128].
// q5_k: d f16, dmin f16, scales[12], fifth bits[32], nibbles[128].
// Each 32 bytes of nibbles hold sub-block 2g in the low and 2g + 1 in the high nibbles; bit 2g (or
// 2g + 1) of fifth-bit byte l belongs to element l of that sub-block.
#pragma once

#include "formats/k_scales.h"

namespace kvant {

// Twelve bytes: the low six bits of bytes 0-3 and 4-7 are scale and minimum of sub-blocks 0-3;
// sub-blocks 4-7 take a nibble each of bytes 8-11 and the top bits of the first eight.
KVANT_INLINE void unpack_six_bit_pairs(const uint8_t* b, uint8_t* scale, uint8_t* min) {
  // Four bytes at a time.
  const uint32_t low = load_u32(b), middle = load_u32(b + 4), high = load_u32(b + 8);
  const auto joined = [](uint32_t first, uint32_t second) { return first | uint64_t(second) << 32; };
  store_u64(scale, joined(low & 0x3f3f3f3fu, (high & 0x0f0f0f0fu) | (low >> 2 & 0x30303030u)));
  store_u64(min, joined(middle & 0x3f3f3f3fu, (high >> 4 & 0x0f0f0f0fu) | (middle >> 2 & 0x30303030u)));
}

KVANT_INLINE void pack_six_bit_pairs(const uint8_t* scale, const uint8_t* min, uint8_t* b) {
  for (int j = 0; j < 4; ++j) {
    b[j] = uint8_t(scale[j] | (scale[j + 4] >> 4) << 6);
    b[j + 4] = uint8_t(min[j] | (min[j + 4] >> 4) << 6);
    b[j + 8] = uint8_t((scale[j + 4] & 15) | (min[j + 4] & 15) << 4);
  }
}

KVANT_INLINE void unpack_k4_scales(const uint8_t* block, float* scale, float* min) {
  alignas(8) uint8_t sc[8], m[8];
  const float d = load_f16_field(block), dmin = load_f16_field(block + 2);
  unpack_six_bit_pairs(block + 4, sc, m);
  for (int j = 0; j < 8; ++j) scale[j] = d * float(sc[j]);
  for (int j = 0; j < 8; ++j) min[j] = dmin * float(m[j]);
}

KVANT_INLINE void unpack_k4_nibbles(const uint8_t* packed, int8_t* codes) {
  for (int g = 0; g < 4; ++g) {
    for (int l = 0; l < 32; ++l) {
      codes[64 * g + l] = int8_t(packed[32 * g + l] & 15);
      codes[64 * g + 32 + l] = int8_t(packed[32 * g + l] >> 4);
    }
  }
}

// Search, scales and codes of sixteen super-blocks; `head` receives d, dmin and the 12 scale bytes.
template <class V, int nmax, bool kWeighted>
KVANT_INLINE void encode_k4(const Batch<V>& in, ByteTile<V, 256>& codes, uint8_t head[16][16]) {
  using S = Search<V>;
  using F = typename V::F;
  Tile<V, 32> weight;
  typename S::Affine fit[8];
  F d, dmin;
  LaneBytes<V, 8> sc, mn;
  if constexpr (kWeighted) {
    F scale[8], min[8], sum_w[8];
    const F sigma2 = V::splat(2.0f) * S::sum_of_squares(in.x, 256) * V::splat(1.0f / 256);
    for (int j = 0; j < 8; ++j) {
      const float* x = from<V>(in.x, 32 * j);
      sum_w[j] = S::importance_weights(x, from<V>(in.importance, 32 * j), sigma2, 32, weight);
      fit[j] = S::template affine<32, nmax, false>(x, weight, -0.9f, 0.05f, 36);
      scale[j] = fit[j].scale;
      min[j] = fit[j].min;
    }
    typename V::I ls[8], lm[8];
    d = S::template positive<8, 63>(scale, sum_w, ls);
    dmin = S::template positive<8, 63>(min, sum_w, lm);
    for (int j = 0; j < 8; ++j) {
      // Only q5_k bounds what a wrapped negative code can leave behind.
      sc.set(j, nmax == 31 ? V::imin(ls[j], V::splat_i(63)) : ls[j]);
      mn.set(j, nmax == 31 ? V::imin(lm[j], V::splat_i(63)) : lm[j]);
    }
  } else {
    F max_scale = S::zero(), max_min = S::zero();
    for (int j = 0; j < 8; ++j) {
      const float* x = from<V>(in.x, 32 * j);
      const F mean = V::sqrt(S::sum_of_squares(x, 32) * V::splat(1.0f / 32));
      for (int i = 0; i < 32; ++i) put<V>(weight, i, mean + V::abs(at<V>(x, i)));
      fit[j] = nmax == 15 ? S::template affine<32, nmax, false>(x, weight, -1.0f, 0.1f, 20)
                          : S::template affine<32, nmax, false>(x, weight, -0.5f, 0.1f, 15);
      max_scale = V::max(fit[j].scale, max_scale);
      max_min = V::max(fit[j].min, max_min);
    }
    const F top = V::splat(63.0f);
    const F inv_scale = V::select(max_scale > S::zero(), top / max_scale, S::zero());
    const F inv_min = V::select(max_min > S::zero(), top / max_min, S::zero());
    const auto six_bits = [&](F inv, F v) {
      return V::imin(V::splat_i(63), S::nearest_int(inv * v) & V::splat_i(255));
    };
    for (int j = 0; j < 8; ++j) {
      sc.set(j, six_bits(inv_scale, fit[j].scale));
      mn.set(j, six_bits(inv_min, fit[j].min));
    }
    d = max_scale / top;
    dmin = max_min / top;
  }

  const LaneHalves<V> scales(d), minima(dmin);
  for (int lane = 0; lane < V::kLanes; ++lane) {
    uint8_t s[8], m[8];
    for (int j = 0; j < 8; ++j) {
      s[j] = sc.get(j, lane);
      m[j] = mn.get(j, lane);
    }
    store_u16(head[lane], scales[lane]);
    store_u16(head[lane] + 2, minima[lane]);
    pack_six_bit_pairs(s, m, head[lane] + 4);
    unpack_six_bit_pairs(head[lane] + 4, s, m);
    for (int j = 0; j < 8; ++j) {
      sc.put(j, lane, s[j]);
      mn.put(j, lane, m[j]);
    }
  }
  const F d16 = V::round_to_f16(d), dmin16 = V::round_to_f16(dmin);
  for (int j = 0; j < 8; ++j) {
    requantize<V, 0, nmax>(in.x, 32 * j, 32, d16 * sc.as_f32(j), dmin16 * mn.as_f32(j), codes,
                           [&](F v, int) { return fit[j].code(v, nmax); });
  }
}

template <class V>
KVANT_INLINE void pack_k4_nibbles(const ByteTile<V, 256>& codes, ByteTile<V, 128>& packed) {
  const auto low = V::splat_i(0x0f0f0f0f);
  for (int k = 0; k < 32; ++k) {
    const int c = 16 * (k / 8) + k % 8;
    packed.set(k, (codes.word(c) & low) | (codes.word(c + 8) & low).template shl<4>());
  }
  packed.finish();
}

template <class V, class Out>
KVANT_INLINE void expand_k4_scales(const PackedBlock<V>& in, Out&& out) {
  const auto dm = in.scale_word(0), low = in.scale_word(4), middle = in.scale_word(8), high = in.scale_word(12);
  const auto d = V::low_half(dm), dmin = V::neg(V::low_half(dm.template shr<16>()));
  const auto six = splat_bytes<V>(63), four = splat_bytes<V>(15), two = splat_bytes<V>(0x30);
  const auto scales = [&](int first, auto w) KVANT_LAMBDA {
    each_byte<V>(w, [&](int j, auto s) KVANT_LAMBDA { out.put_scale(first + j, d * V::to_f32(s)); });
  };
  const auto minima = [&](int first, auto w) KVANT_LAMBDA {
    each_byte<V>(w, [&](int j, auto m) KVANT_LAMBDA { out.put_neg_min(first + j, dmin * V::to_f32(m)); });
  };
  scales(0, low & six);
  scales(4, (high & four) | (low.template shr<2>() & two));
  minima(0, middle & six);
  minima(4, (high.template shr<4>() & four) | (middle.template shr<2>() & two));
}

struct Q4_K {
  static constexpr FormatInfo kInfo = {"q4_k", 12, 256, 144, 32, true, true};
  static constexpr bool kHasMin = true;
  static constexpr const int8_t* kTable = nullptr;

  KVANT_INLINE void unpack(const uint8_t* block, UnpackedOf<Q4_K>& u) {
    unpack_k4_scales(block, u.scale, u.min);
    unpack_k4_nibbles(block + 16, u.codes);
  }

  static constexpr Plane kCodePlanes[] = {{16, 128, 4}}, kScalePlanes[] = {{0, 16, 4}};
  static constexpr int kCodeMax = 15, kCodeOffset = 0;

  template <class V, class Out>
  KVANT_INLINE void expand(const PackedBlock<V>& in, Out&& out) {
    expand_k4_scales<V>(in, out);
    const auto low = splat_bytes<V>(15);
    each_place<V, 32>([&](int i) KVANT_LAMBDA {
      const auto w = in.code_word(i);
      const int k = 16 * (i / 8) + i % 8;
      out.put(k, w & low);
      out.put(k + 8, w.template shr<4>() & low);
    });
  }

  template <class V, bool kWeighted>
  KVANT_INLINE void encode(const Batch<V>& in, uint8_t* out, int count) {
    ByteTile<V, 256> codes;
    uint8_t head[16][16];
    encode_k4<V, 15, kWeighted>(in, codes, head);
    ByteTile<V, 128> packed;
    pack_k4_nibbles<V>(codes, packed);
    for (int lane = 0; lane < count; ++lane, out += 144) {
      memcpy(out, head[lane], 16);
      packed.read(lane, out + 16);
    }
  }
};

struct Q5_K {
  static constexpr FormatInfo kInfo = {"q5_k", 13, 256, 176, 32, true, true};
  static constexpr bool kHasMin = true;
  static constexpr const int8_t* kTable = nullptr;

  KVANT_INLINE void unpack(const uint8_t* block, UnpackedOf<Q5_K>& u) {
    unpack_k4_scales(block, u.scale, u.min);
    unpack_k4_nibbles(block + 48, u.codes);
    for (int j = 0; j < 8; ++j) {
      for (int l = 0; l < 32; ++l) {
        u.codes[32 * j + l] = int8_t(u.codes[32 * j + l] | ((block[16 + l] >> j) & 1) << 4);
      }
    }
  }

  static constexpr Plane kCodePlanes[] = {{16, 32, 4}, {48, 128, 4}}, kScalePlanes[] = {{0, 16, 4}};
  static constexpr int kCodeMax = 31, kCodeOffset = 0;

  template <class V, class Out>
  KVANT_INLINE void expand(const PackedBlock<V>& in, Out&& out) {
    expand_k4_scales<V>(in, out);
    const auto low = splat_bytes<V>(15), fifth_bit = splat_bytes<V>(16);
    each_place<V, 8>([&](int i) KVANT_LAMBDA {
      const auto fifth = in.code_word(i);
      const auto two = [&](int g, auto even, auto odd) KVANT_LAMBDA {
        const auto w = in.code_word(8 + 8 * g + i);
        out.put(16 * g + i, (w & low) | (even & fifth_bit));
        out.put(16 * g + 8 + i, (w.template shr<4>() & low) | (odd & fifth_bit));
      };
      two(0, fifth.template shl<4>(), fifth.template shl<3>());
      two(1, fifth.template shl<2>(), fifth.template shl<1>());
      two(2, fifth, fifth.template shr<1>());
      two(3, fifth.template shr<2>(), fifth.template shr<3>());
    });
  }

  template <class V, bool kWeighted>
  KVANT_INLINE void encode(const Batch<V>& in, uint8_t* out, int count) {
    ByteTile<V, 256> codes;
    uint8_t head[16][16];
    encode_k4<V, 31, kWeighted>(in, codes, head);
    ByteTile<V, 128> packed;
    pack_k4_nibbles<V>(codes, packed);
    ByteTile<V, 32> fifth;
    for (int k = 0; k < 8; ++k) {
      auto bits = V::splat_i(0);
      for (int j = 7; j >= 0; --j) {
        const auto bit = codes.word(8 * j + k).template shr<4>() & V::splat_i(0x01010101);
        bits = bits.template shl<1>() | bit;
      }
      fifth.set(k, bits);
    }
    fifth.finish();
    for (int lane = 0; lane < count; ++lane, out += 176) {
      memcpy(out, head[lane], 16);
      fifth.read(lane, out + 16);
      packed.read(lane, out + 48);
    }
  }
};

}  // namespace kvant
