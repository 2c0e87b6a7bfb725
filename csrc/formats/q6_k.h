// q6_k: super-blocks of 256 in sixteen sub-blocks of 16 with 8-bit scales.
// Layout: low nibbles[128], high pairs[64], scales i8[16], d f16.  y = (d * sc) * (q - 32).
// Per half of 128: byte l of the nibbles holds elements l and l + 64, byte l + 32 elements l + 32
// and l + 96; the four bit pairs of high byte l belong to l, l + 32, l + 64, l + 96.
#pragma once

#include "formats/k_scales.h"

namespace kvant {

struct Q6_K {
  static constexpr FormatInfo kInfo = {"q6_k", 14, 256, 210, 16, true, true};
  static constexpr bool kHasMin = false;
  static constexpr const int8_t* kTable = nullptr;

  KVANT_INLINE void unpack(const uint8_t* block, UnpackedOf<Q6_K>& u) {
    const float d = load_f16_field(block + 208);
    for (int j = 0; j < 16; ++j) u.scale[j] = d * float(int8_t(block[192 + j]));
    for (int h = 0; h < 2; ++h) {
      const uint8_t *low = block + 64 * h, *high = block + 128 + 32 * h;
      int8_t* c = u.codes + 128 * h;
      for (int l = 0; l < 32; ++l) {
        c[l] = int8_t(((low[l] & 15) | (high[l] & 3) << 4) - 32);
        c[l + 32] = int8_t(((low[l + 32] & 15) | (high[l] >> 2 & 3) << 4) - 32);
        c[l + 64] = int8_t((low[l] >> 4 | (high[l] >> 4 & 3) << 4) - 32);
        c[l + 96] = int8_t((low[l + 32] >> 4 | (high[l] >> 6) << 4) - 32);
      }
    }
  }

  static constexpr Plane kCodePlanes[] = {{0, 192, 4}}, kScalePlanes[] = {{192, 16, 4}, {208, 2, 2}};
  static constexpr int kCodeMax = 63, kCodeOffset = 32;

  template <class V, class Out>
  KVANT_INLINE void expand(const PackedBlock<V>& in, Out&& out) {
    const auto d = in.scale_half(16);
    const auto sign = V::splat_i(128);
    each_place<V, 4>([&](int q) KVANT_LAMBDA {
      each_byte<V>(in.scale_word(4 * q), [&](int j, auto s) KVANT_LAMBDA {
        out.put_scale(4 * q + j, d * V::to_f32((s ^ sign) - sign));
      });
    });
    const auto low = splat_bytes<V>(15), pair = splat_bytes<V>(0x30);
    each_place<V, 2>([&](int h) KVANT_LAMBDA {
      each_place<V, 8>([&](int i) KVANT_LAMBDA {
        const auto a = in.code_word(16 * h + i), b = in.code_word(16 * h + 8 + i), high = in.code_word(32 + 8 * h + i);
        const int k = 32 * h + i;
        out.put(k, (a & low) | (high.template shl<4>() & pair));
        out.put(k + 8, (b & low) | (high.template shl<2>() & pair));
        out.put(k + 16, (a.template shr<4>() & low) | (high & pair));
        out.put(k + 24, (b.template shr<4>() & low) | (high.template shr<2>() & pair));
      });
    });
  }

  template <class V, bool kWeighted>
  KVANT_INLINE void encode(const Batch<V>& in, uint8_t* out, int count) {
    using S = Search<V>;
    using F = typename V::F;
    Tile<V, 16> weight;
    typename S::Symmetric fit[16];
    F max_abs = S::zero(), max_scale = S::zero();
    for (int j = 0; j < 16; ++j) {
      const float* x = from<V>(in.x, 16 * j);
      const float* w = weight;
      if constexpr (kWeighted) {
        w = from<V>(in.importance, 16 * j);
      } else {
        for (int i = 0; i < 16; ++i) put<V>(weight, i, at<V>(x, i) * at<V>(x, i));
      }
      fit[j] = S::template symmetric<16, 32>(x, w);
      const F a = V::abs(fit[j].scale);
      const auto larger = a > max_abs;
      max_abs = V::select(larger, a, max_abs);
      max_scale = V::select(larger, fit[j].scale, max_scale);
    }
    const auto empty = max_abs < V::splat(kGroupMaxEps);
    const F iscale = V::splat(-128.0f) / max_scale;
    const F d = V::select(empty, S::zero(), V::splat(1.0f) / iscale);
    const F d16 = V::round_to_f16(d);
    ByteTile<V, 256> codes;
    LaneBytes<V, 16> sc;
    for (int j = 0; j < 16; ++j) {
      const auto l = V::imin(V::splat_i(127), S::nearest_int(iscale * fit[j].scale));
      const auto l8 = S::signed_byte(l);
      const auto scale = V::select(empty, V::splat_i(0), l8);
      sc.set(j, scale);
      requantize<V, -32, 31>(in.x, 16 * j, 16, d16 * V::to_f32(scale), S::zero(), codes, [&](F v, int) {
        return V::select(empty, V::splat_i(0), fit[j].code(v, 32));
      });
    }
    ByteTile<V, 128> low;
    ByteTile<V, 64> high;
    const auto nibble = [&](int k) { return codes.word(k) & V::splat_i(0x0f0f0f0f); };
    const auto pair = [&](int k) { return codes.word(k).template shr<4>() & V::splat_i(0x03030303); };
    for (int h = 0; h < 2; ++h) {
      for (int k = 0; k < 8; ++k) {
        const int c = 32 * h + k;
        low.set(16 * h + k, nibble(c) | nibble(c + 16).template shl<4>());
        low.set(16 * h + 8 + k, nibble(c + 8) | nibble(c + 24).template shl<4>());
        high.set(8 * h + k, (pair(c) | pair(c + 8).template shl<2>()) |
                                (pair(c + 16).template shl<4>() | pair(c + 24).template shl<6>()));
      }
    }
    low.finish();
    high.finish();
    const LaneHalves<V> scales(d);
    for (int lane = 0; lane < count; ++lane, out += 210) {
      low.read(lane, out);
      high.read(lane, out + 128);
      for (int j = 0; j < 16; ++j) out[192 + j] = sc.get(j, lane);
      store_u16(out + 208, scales[lane]);
    }
  }
};

}  // namespace kvant
