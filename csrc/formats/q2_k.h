// q2_k: super-blocks of 256 in sixteen sub-blocks of 16 with 4-bit scales and minima.
// Layout: scales[16] (low nibble scale, high nibble minimum), pairs[64], d f16, dmin f16.
// y = (d * sc) * q - (dmin * m).
#pragma once

#include "formats/k_scales.h"

namespace kvant {

struct Q2_K {
  static constexpr FormatInfo kInfo = {"q2_k", 10, 256, 84, 16, true, true};
  static constexpr bool kHasMin = true;
  static constexpr const int8_t* kTable = nullptr;

  KVANT_INLINE void unpack(const uint8_t* block, UnpackedOf<Q2_K>& u) {
    const float d = load_f16_field(block + 80), dmin = load_f16_field(block + 82);
    for (int j = 0; j < 16; ++j) u.scale[j] = d * float(block[j] & 15);
    for (int j = 0; j < 16; ++j) u.min[j] = dmin * float(block[j] >> 4);
    unpack_pairs256(block + 16, u.codes);
  }

  static constexpr Plane kCodePlanes[] = {{16, 64, 4}}, kScalePlanes[] = {{0, 16, 4}, {80, 4, 4}};
  static constexpr int kCodeMax = 3, kCodeOffset = 0;

  template <class V, class Out>
  KVANT_INLINE void expand(const PackedBlock<V>& in, Out&& out) {
    const auto dm = in.scale_word(16);
    const auto d = V::low_half(dm), dmin = V::neg(V::low_half(dm.template shr<16>()));
    each_place<V, 4>([&](int q) KVANT_LAMBDA {
      const auto w = in.scale_word(4 * q);
      each<4>([&]<int j>() KVANT_LAMBDA {
        out.put_scale(4 * q + j, d * V::low_nibble(w.template shr<8 * j>()));
        out.put_neg_min(4 * q + j, dmin * V::low_nibble(w.template shr<8 * j + 4>()));
      });
    });
    expand_pairs256<V>(in, 0, out);
  }

  template <class V, bool kWeighted>
  KVANT_INLINE void encode(const Batch<V>& in, uint8_t* out, int count) {
    using S = Search<V>;
    using F = typename V::F;
    using I = typename V::I;
    Tile<V, 16> weight;
    typename S::Affine fit[16];
    LaneBytes<V, 16> nibbles;
    F d, dmin;
    if constexpr (kWeighted) {
      F scale[16], min[16], sum_w[16];
      const F sigma2 = S::sum_of_squares(in.x, 256) * V::splat(1.0f / 256);
      for (int j = 0; j < 16; ++j) {
        const float* x = from<V>(in.x, 16 * j);
        sum_w[j] = S::importance_weights(x, from<V>(in.importance, 16 * j), sigma2, 16, weight);
        fit[j] = S::template affine<16, 3, false>(x, weight, -0.9f, 0.05f, 36);
        scale[j] = fit[j].scale;
        min[j] = fit[j].min;
      }
      I ls[16], lm[16];
      d = S::template positive<16, 15>(scale, sum_w, ls);
      dmin = S::template positive<16, 15>(min, sum_w, lm);
      for (int j = 0; j < 16; ++j) nibbles.set(j, ls[j] | lm[j].template shl<4>());
    } else {
      F max_scale = S::zero(), max_min = S::zero();
      for (int j = 0; j < 16; ++j) {
        const float* x = from<V>(in.x, 16 * j);
        for (int i = 0; i < 16; ++i) put<V>(weight, i, V::abs(at<V>(x, i)));
        fit[j] = S::template affine<16, 3, true>(x, weight, -0.5f, 0.1f, 15);
        max_scale = V::max(fit[j].scale, max_scale);
        max_min = V::max(fit[j].min, max_min);
      }
      const F top = V::splat(15.0f);
      const auto has_scale = max_scale > S::zero(), has_min = max_min > S::zero();
      const F inv_scale = top / max_scale, inv_min = top / max_min;
      for (int j = 0; j < 16; ++j) {
        const I ls = V::select(has_scale, S::nearest_int(inv_scale * fit[j].scale), V::splat_i(0));
        const I lm = V::select(has_min, S::nearest_int(inv_min * fit[j].min), V::splat_i(0));
        nibbles.set(j, ls | lm.template shl<4>());
      }
      d = V::select(has_scale, max_scale / top, S::zero());
      dmin = V::select(has_min, max_min / top, S::zero());
    }

    ByteTile<V, 256> codes;
    const F d16 = V::round_to_f16(d), dmin16 = V::round_to_f16(dmin);
    for (int j = 0; j < 16; ++j) {
      const I byte = V::load_i(nibbles.v[j]);
      const F sc = V::to_f32(byte & V::splat_i(15)), m = V::to_f32(byte.template shr<4>());
      requantize<V, 0, 3>(in.x, 16 * j, 16, d16 * sc, dmin16 * m, codes,
                          [&](F v, int) { return fit[j].code(v, 3); });
    }
    ByteTile<V, 64> packed;
    pack_pairs256(codes, packed);
    packed.finish();
    const LaneHalves<V> scales(d), minima(dmin);
    for (int lane = 0; lane < count; ++lane, out += 84) {
      for (int j = 0; j < 16; ++j) out[j] = nibbles.get(j, lane);
      packed.read(lane, out + 16);
      store_u16(out + 80, scales[lane]);
      store_u16(out + 82, minima[lane]);
    }
  }
};

}  // namespace kvant
