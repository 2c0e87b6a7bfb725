// q3_k: super-blocks of 256 in sixteen sub-blocks of 16 with 6-bit scales.
// Layout: high bits[32], pairs[64], scales[12], d f16.  y = (d * (sc - 32)) * (q - 4).
// Bit t of high-bit byte l belongs to element 32t + l. Scale j: low nibble in byte j (low half for
// j < 8, high half of byte j - 8 after), high pair in bits 2(j / 4) of byte 8 + j % 4.
#pragma once

#include "formats/k_scales.h"

namespace kvant {

KVANT_INLINE void unpack_six_bits16(const uint8_t* b, uint8_t* scale) {
  for (int j = 0; j < 16; ++j) {
    const int low = j < 8 ? b[j] & 15 : b[j - 8] >> 4;
    scale[j] = uint8_t(low | ((b[8 + j % 4] >> (2 * (j / 4))) & 3) << 4);
  }
}

KVANT_INLINE void pack_six_bits16(const uint8_t* scale, uint8_t* b) {
  for (int j = 0; j < 8; ++j) b[j] = uint8_t((scale[j] & 15) | (scale[j + 8] & 15) << 4);
  for (int j = 0; j < 4; ++j) {
    b[8 + j] = uint8_t(scale[j] >> 4 | (scale[j + 4] >> 4) << 2 | (scale[j + 8] >> 4) << 4 | (scale[j + 12] >> 4) << 6);
  }
}

// Scale and codes by coordinate descent from the plain grid (ggml's make_q3_quants), for kTogether
// neighbouring sub-blocks of 16: each is one long dependency chain, so several run side by side.
template <class V, int kTogether>
KVANT_INLINE void descend_q3(const float* x, typename V::F* scale, float* codes) {
  using S = Search<V>;
  using F = typename V::F;
  Tile<V, kTogether * 16> wx;
  F sumlx[kTogether], suml2[kTogether];
  typename V::M dead[kTogether];
  const auto grid = [](F v) { return V::to_f32(S::clamp(S::nearest_int(v), -4, 3)); };
  for (int g = 0; g < kTogether; ++g) {
    const auto e = S::extreme(from<V>(x, 16 * g), 16);
    dead[g] = e.abs < V::splat(kGroupMaxEps);
    const F iscale = V::splat(-4.0f) / V::select(dead[g], V::splat(1.0f), e.value);
    sumlx[g] = suml2[g] = S::zero();
    for (int i = 16 * g; i < 16 * g + 16; ++i) {
      const F v = at<V>(x, i), w = v * v, l = grid(iscale * v);
      put<V>(wx, i, w * v);
      put<V>(codes, i, l);
      sumlx[g] = sumlx[g] + w * v * l;
      suml2[g] = suml2[g] + w * l * l;
    }
  }
  for (int pass = 0; pass < 5; ++pass) {
    auto changed = dead[0] & !dead[0];
    for (int k = 0; k < 16; ++k) {
      for (int g = 0; g < kTogether; ++g) {
        const int i = 16 * g + k;
        const F v = at<V>(x, i), w = v * v, wxi = at<V>(wx, i), l = at<V>(codes, i);
        F slx = sumlx[g] - wxi * l;
        F sl2 = suml2[g] - w * l * l;
        const F next = grid(v * sl2 / slx);
        auto take = (slx > S::zero()) & (next != l);
        slx = slx + wxi * next;
        sl2 = sl2 + w * next * next;
        take = take & (sl2 > S::zero()) & (slx * slx * suml2[g] > sumlx[g] * sumlx[g] * sl2);
        changed = changed | take;
        put<V>(codes, i, V::select(take, next, l));
        sumlx[g] = V::select(take, slx, sumlx[g]);
        suml2[g] = V::select(take, sl2, suml2[g]);
      }
    }
    if (!V::any(changed)) break;
  }
  for (int g = 0; g < kTogether; ++g) {
    scale[g] = V::select(dead[g] | !(suml2[g] > S::zero()), S::zero(), sumlx[g] / suml2[g]);
    for (int i = 16 * g; i < 16 * g + 16; ++i) {
      const F biased = at<V>(codes, i) + V::splat(4.0f);
      put<V>(codes, i, V::select(dead[g], S::zero(), biased));
    }
  }
}

struct Q3_K {
  static constexpr FormatInfo kInfo = {"q3_k", 11, 256, 110, 16, true, true};
  static constexpr bool kHasMin = false;
  static constexpr const int8_t* kTable = nullptr;

  KVANT_INLINE void unpack(const uint8_t* block, UnpackedOf<Q3_K>& u) {
    uint8_t sc[16];
    const float d = load_f16_field(block + 108);
    unpack_six_bits16(block + 96, sc);
    for (int j = 0; j < 16; ++j) u.scale[j] = d * float(int(sc[j]) - 32);
    unpack_pairs256(block + 32, u.codes);
    for (int t = 0; t < 8; ++t) {
      for (int l = 0; l < 32; ++l) {
        u.codes[32 * t + l] = int8_t(u.codes[32 * t + l] + ((block[l] >> t) & 1) * 4 - 4);
      }
    }
  }

  static constexpr Plane kCodePlanes[] = {{0, 32, 4}, {32, 64, 4}}, kScalePlanes[] = {{96, 12, 4}, {108, 2, 2}};
  static constexpr int kCodeMax = 7, kCodeOffset = 4;

  template <class V, class Out>
  KVANT_INLINE void expand(const PackedBlock<V>& in, Out&& out) {
    const auto d = in.scale_half(12);
    const auto first = in.scale_word(0), second = in.scale_word(4), high = in.scale_word(8);
    const auto low = splat_bytes<V>(15), pair = splat_bytes<V>(3);
    const auto four = [&](int q, auto nibbles, auto pairs) KVANT_LAMBDA {
      each_byte<V>((nibbles & low) | (pairs & pair).template shl<4>(), [&](int j, auto s) KVANT_LAMBDA {
        out.put_scale(4 * q + j, d * V::to_f32(s - V::splat_i(32)));
      });
    };
    four(0, first, high);
    four(1, second, high.template shr<2>());
    four(2, first.template shr<4>(), high.template shr<4>());
    four(3, second.template shr<4>(), high.template shr<6>());
    // The third bit of byte l of the mask word: bit t for elements 32 t + l.
    const auto four_bit = splat_bytes<V>(4);
    each_place<V, 8>([&](int i) KVANT_LAMBDA {
      const auto mask = in.code_word(i), a = in.code_word(8 + i), b = in.code_word(16 + i);
      out.put(i, (a & pair) | (mask.template shl<2>() & four_bit));
      out.put(8 + i, (a.template shr<2>() & pair) | (mask.template shl<1>() & four_bit));
      out.put(16 + i, (a.template shr<4>() & pair) | (mask & four_bit));
      out.put(24 + i, (a.template shr<6>() & pair) | (mask.template shr<1>() & four_bit));
      out.put(32 + i, (b & pair) | (mask.template shr<2>() & four_bit));
      out.put(40 + i, (b.template shr<2>() & pair) | (mask.template shr<3>() & four_bit));
      out.put(48 + i, (b.template shr<4>() & pair) | (mask.template shr<4>() & four_bit));
      out.put(56 + i, (b.template shr<6>() & pair) | (mask.template shr<5>() & four_bit));
    });
  }

  template <class V, bool kWeighted>
  KVANT_INLINE void encode(const Batch<V>& in, uint8_t* out, int count) {
    using S = Search<V>;
    using F = typename V::F;
    using I = typename V::I;
    Tile<V, 256> left;  // what the search leaves behind: codes + 4
    F scale[16], d;
    LaneBytes<V, 16> sc;
    if constexpr (kWeighted) {
      Tile<V, 16> weight, scales, sums;
      const F sigma2 = V::splat(2.0f) * S::sum_of_squares(in.x, 256) * V::splat(1.0f / 256);
      for (int j = 0; j < 16; ++j) {
        const float* x = from<V>(in.x, 16 * j);
        put<V>(sums, j, S::importance_weights(x, from<V>(in.importance, 16 * j), sigma2, 16, weight));
        const auto fit = S::template symmetric<16, 4>(x, weight);
        put<V>(scales, j, fit.scale);
        for (int i = 0; i < 16; ++i) put<V>(left, 16 * j + i, V::to_f32(fit.code(at<V>(x, i), 4)));
      }
      const auto fit = S::template symmetric<16, 32, true>(scales, sums);
      for (int j = 0; j < 16; ++j) sc.set(j, fit.code(at<V>(scales, j), 32));
      d = fit.scale;
    } else {
      for (int j = 0; j < 16; j += 4) descend_q3<V, 4>(from<V>(in.x, 16 * j), scale + j, left + 16 * j * V::kLanes);
      F amax = S::zero(), max_scale = S::zero();
      for (int j = 0; j < 16; ++j) {
        const F a = V::abs(scale[j]);
        const auto larger = a > amax;
        amax = V::select(larger, a, amax);
        max_scale = V::select(larger, scale[j], max_scale);
      }
      const auto some = max_scale != S::zero();
      const F iscale = V::splat(-32.0f) / max_scale;
      for (int j = 0; j < 16; ++j) {
        const I l = S::nearest_int(iscale * scale[j]);
        const I l8 = S::signed_byte(l);
        sc.set(j, V::select(some, S::clamp(l8, -32, 31) + V::splat_i(32), V::splat_i(0)));
      }
      d = V::select(some, V::splat(1.0f) / iscale, S::zero());
    }

    ByteTile<V, 256> codes;
    const F d16 = V::round_to_f16(d);
    for (int j = 0; j < 16; ++j) {
      requantize<V, -4, 3>(in.x, 16 * j, 16, d16 * (sc.as_f32(j) - V::splat(32.0f)), S::zero(), codes,
                           [&](F, int i) { return V::trunc(at<V>(left, i)); });
    }
    ByteTile<V, 32> high;
    for (int k = 0; k < 8; ++k) {
      auto bits = V::splat_i(0);
      for (int t = 7; t >= 0; --t) {
        const auto bit = codes.word(8 * t + k).template shr<2>() & V::splat_i(0x01010101);
        bits = bits.template shl<1>() | bit;
      }
      high.set(k, bits);
    }
    high.finish();
    ByteTile<V, 64> packed;
    pack_pairs256(codes, packed);
    packed.finish();
    const LaneHalves<V> halves(d);
    for (int lane = 0; lane < count; ++lane, out += 110) {
      uint8_t s[16];
      for (int j = 0; j < 16; ++j) s[j] = sc.get(j, lane);
      high.read(lane, out);
      packed.read(lane, out + 32);
      pack_six_bits16(s, out + 96);
      store_u16(out + 108, halves[lane]);
    }
  }
};

}  // namespace kvant
