// iq4_nl: blocks of 32, d f16 and nibbles that index a table of sixteen uneven steps; y = d * K[q].
// iq4_xs: super-blocks of 256, d f16, high scale pairs u16, low scale nibbles[4], nibbles[128];
// sub-block b of 32 has the 6-bit scale low nibble b | high pair b << 4;  y = (d * (sc - 32)) * K[q].
#pragma once

#include "formats/k_scales.h"
#include "formats/q4.h"

namespace kvant {

alignas(16) constexpr int8_t kIq4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                               1,    13,   25,  38,  53,  69,  89,  113};

// Values are integers less than 24 apart, so a value is nearer to its upper neighbour exactly when
// it is not below their midpoint: ggml compares the two distances, and the tie goes up there too.
KVANT_INLINE constexpr float iq4_midpoint(int k) { return 0.5f * float(kIq4Values[k] + kIq4Values[k + 1]); }

// The same as a table over 32 cells of width 8 from -128 on, each with at most one midpoint: below
// `step` the value is `low`, else `high`.
struct Iq4Cells {
  alignas(64) float step[32], low[32], high[32];
};

constexpr Iq4Cells iq4_cells() {
  Iq4Cells cells{};
  for (int cell = 0, k = 0; cell < 32; ++cell) {
    const float end = float(8 * cell - 120);
    const bool has_step = k < 15 && iq4_midpoint(k) < end;
    cells.low[cell] = float(kIq4Values[k]);
    cells.step[cell] = has_step ? iq4_midpoint(k) : -128.0f;
    if (has_step) ++k;
    cells.high[cell] = float(kIq4Values[k]);
  }
  return cells;
}

constexpr Iq4Cells kIq4Cells = iq4_cells();

template <class V>
struct Iq4Search {
  using F = typename V::F;
  using I = typename V::I;
  using S = Search<V>;

  // The table value nearest to v; NaN gives the last.
  KVANT_INLINE F value(F v) {
    if constexpr (V::kHasTables) {
      // Rounding may push a value into the cell above; that cell's `low` is then its value.
      const F cell = v * V::splat(0.125f) + V::splat(16.0f);
      const I c = V::trunc(V::max(V::min(cell, V::splat(31.0f)), S::zero()));
      const F low = V::table32(kIq4Cells.low, c), high = V::table32(kIq4Cells.high, c);
      return V::select(v < V::table32(kIq4Cells.step, c), low, high);
    } else {
      F q = V::splat(float(kIq4Values[15]));
      for (int k = 14; k >= 0; --k) {
        q = V::select(v < V::splat(iq4_midpoint(k)), V::splat(float(kIq4Values[k])), q);
      }
      return q;
    }
  }

  KVANT_INLINE I index(F v) {
    I n = V::splat_i(15);
    for (int k = 14; k >= 0; --k) n = V::select(v < V::splat(iq4_midpoint(k)), V::splat_i(k), n);
    return n;
  }

  // Best scale of 32 elements: fifteen grids around the extreme element, least squares on each.
  KVANT_INLINE F scale(const float* x, const float* weight) {
    const auto e = S::extreme(x, 32);
    const auto dead = e.abs < V::splat(kGroupMaxEps);
    const F max = V::select(dead, V::splat(1.0f), e.value);
    F d = S::zero(), best = S::zero();
    for (int itry = -8; itry <= 7; ++itry) {
      const bool first = itry == -8;
      const F id = first ? V::splat(1.0f) / (V::neg(max) / V::splat(float(kIq4Values[0])))
                         : V::splat(float(itry + kIq4Values[0])) / max;
      F sumqx = S::zero(), sumq2 = S::zero();
      for (int i = 0; i < 32; ++i) {
        const F v = at<V>(x, i), q = value(id * v), wq = at<V>(weight, i) * q;
        sumqx = sumqx + wq * v;
        sumq2 = sumq2 + wq * q;
      }
      const auto some = sumq2 > S::zero();
      if (first) {
        d = V::select(some, sumqx / sumq2, S::zero());
        best = d * sumqx;
      } else {
        const auto better = some & (sumqx * sumqx > best * sumq2);
        const F next = sumqx / sumq2;
        d = V::select(better, next, d);
        best = V::select(better, next * sumqx, best);
      }
    }
    return V::select(dead, S::zero(), d);
  }

  template <bool kWeighted>
  KVANT_INLINE void weights(const float* x, const float* importance, F sigma2, float* weight) {
    if constexpr (kWeighted) {
      S::importance_weights(x, importance, sigma2, 32, weight);
    } else {
      for (int i = 0; i < 32; ++i) put<V>(weight, i, at<V>(x, i) * at<V>(x, i));
    }
  }

  template <class Tile>
  KVANT_INLINE void codes(const float* x, int first, F id, Tile& tile) {
    for (int i = first; i < first + 32; i += 4) {
      tile.put(i / 4, index(id * at<V>(x, i)), index(id * at<V>(x, i + 1)), index(id * at<V>(x, i + 2)),
               index(id * at<V>(x, i + 3)));
    }
  }
};

// The values as codes: plus 128, for processors that multiply unsigned by signed bytes.
alignas(16) constexpr uint8_t kIq4Unsigned[16] = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};

template <class V>
KVANT_INLINE typename V::I iq4_codes(typename V::I nibbles) {
  return V::lookup_bytes(V::kWideOffset ? kIq4Unsigned : reinterpret_cast<const uint8_t*>(kIq4Values), nibbles);
}

struct IQ4_NL {
  static constexpr FormatInfo kInfo = {"iq4_nl", 20, 32, 18, 32, true, true};
  static constexpr bool kHasMin = false;
  static constexpr const int8_t* kTable = kIq4Values;

  KVANT_INLINE void unpack(const uint8_t* block, UnpackedOf<IQ4_NL>& u) {
    u.scale[0] = load_f16_field(block);
    unpack_nibbles32(block + 2, u.codes);
  }

  static constexpr Plane kCodePlanes[] = {{2, 16, 4}}, kScalePlanes[] = {{0, 2, 2}};
  static constexpr int kCodeMax = 255, kCodeOffset = 0;

  template <class V, class Out>
  KVANT_INLINE void expand(const PackedBlock<V>& in, Out&& out) {
    out.put_scale(0, in.scale_half(0));
    expand_nibbles32<V>(in, 0, out, 0, [](int, auto nibbles) KVANT_LAMBDA { return iq4_codes<V>(nibbles); });
  }

  template <class V, bool kWeighted>
  KVANT_INLINE void encode(const Batch<V>& in, uint8_t* out, int count) {
    using S = Search<V>;
    using F = typename V::F;
    Tile<V, 32> weight;
    const F sigma2 = S::sum_of_squares(in.x, 32) * V::splat(2.0f / 32);
    Iq4Search<V>::template weights<kWeighted>(in.x, in.importance, sigma2, weight);
    const F d = Iq4Search<V>::scale(in.x, weight);
    const F id = V::select(d != S::zero(), V::splat(1.0f) / d, S::zero());
    ByteTile<V, 32> codes;
    Iq4Search<V>::codes(in.x, 0, id, codes);
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

struct IQ4_XS {
  static constexpr FormatInfo kInfo = {"iq4_xs", 23, 256, 136, 32, true, true};
  static constexpr bool kHasMin = false;
  static constexpr const int8_t* kTable = kIq4Values;

  KVANT_INLINE void unpack(const uint8_t* block, UnpackedOf<IQ4_XS>& u) {
    const float d = load_f16_field(block);
    const int high = load_u16(block + 2);
    for (int b = 0; b < 8; ++b) {
      const int low = (block[4 + b / 2] >> (4 * (b % 2))) & 15;
      u.scale[b] = d * float((low | ((high >> (2 * b)) & 3) << 4) - 32);
      unpack_nibbles32(block + 8 + 16 * b, u.codes + 32 * b);
    }
  }

  static constexpr Plane kCodePlanes[] = {{8, 128, 4}}, kScalePlanes[] = {{0, 8, 4}};
  static constexpr int kCodeMax = 255, kCodeOffset = 0;

  template <class V, class Out>
  KVANT_INLINE void expand(const PackedBlock<V>& in, Out&& out) {
    const auto dh = in.scale_word(0), nibbles = in.scale_word(4);
    const auto d = V::low_half(dh);
    const auto four = V::splat_i(15), two = V::splat_i(0x30);
    const auto put = [&](int b, auto low, auto high) KVANT_LAMBDA {
      const auto s = (low & four) | (high & two);
      out.put_scale(b, d * V::to_f32(s - V::splat_i(32)));
    };
    // The upper half of dh holds two bits for each block.
    put(0, nibbles, dh.template shr<12>());
    put(1, nibbles.template shr<4>(), dh.template shr<14>());
    put(2, nibbles.template shr<8>(), dh.template shr<16>());
    put(3, nibbles.template shr<12>(), dh.template shr<18>());
    put(4, nibbles.template shr<16>(), dh.template shr<20>());
    put(5, nibbles.template shr<20>(), dh.template shr<22>());
    put(6, nibbles.template shr<24>(), dh.template shr<24>());
    put(7, nibbles.template shr<28>(), dh.template shr<26>());
    each_place<V, 8>([&](int b) KVANT_LAMBDA {
      expand_nibbles32<V>(in, 4 * b, out, 8 * b, [](int, auto nibbles) KVANT_LAMBDA { return iq4_codes<V>(nibbles); });
    });
  }

  template <class V, bool kWeighted>
  KVANT_INLINE void encode(const Batch<V>& in, uint8_t* out, int count) {
    using S = Search<V>;
    using F = typename V::F;
    Tile<V, 32> weight;
    const F sigma2 = S::sum_of_squares(in.x, 256) * V::splat(2.0f / 256);
    F scale[8], amax = S::zero(), max = S::zero();
    for (int b = 0; b < 8; ++b) {
      const float* x = from<V>(in.x, 32 * b);
      const float* qw = kWeighted ? from<V>(in.importance, 32 * b) : nullptr;
      Iq4Search<V>::template weights<kWeighted>(x, qw, sigma2, weight);
      scale[b] = Iq4Search<V>::scale(x, weight);
      const F a = V::abs(scale[b]);
      const auto larger = a > amax;
      amax = V::select(larger, a, amax);
      max = V::select(larger, scale[b], max);
    }
    const F d = V::neg(max) * V::splat(1.0f / 32);
    const F id = V::select(d != S::zero(), V::splat(1.0f) / d, S::zero());
    ByteTile<V, 256> codes;
    LaneBytes<V, 8> sc;
    for (int b = 0; b < 8; ++b) {
      const auto l = S::clamp(S::nearest_int(id * scale[b]), -32, 31);
      const F dl = d * V::to_f32(l);
      const F idl = V::select(dl != S::zero(), V::splat(1.0f) / dl, S::zero());
      Iq4Search<V>::codes(in.x, 32 * b, idl, codes);
      sc.set(b, l + V::splat_i(32));
    }
    ByteTile<V, 128> packed;
    for (int b = 0; b < 8; ++b) pack_nibbles32<V>(codes, 8 * b, packed, 4 * b);
    packed.finish();
    const LaneHalves<V> halves(d);
    for (int lane = 0; lane < count; ++lane, out += 136) {
      int high = 0;
      for (int b = 0; b < 8; ++b) {
        const int s = sc.get(b, lane);
        high |= (s >> 4) << (2 * b);
        const int low = (s & 15) << (4 * (b % 2));
        out[4 + b / 2] = uint8_t(b % 2 ? out[4 + b / 2] | low : low);
      }
      store_u16(out, halves[lane]);
      store_u16(out + 2, uint16_t(high));
      packed.read(lane, out + 8);
    }
  }
};

}  // namespace kvant
