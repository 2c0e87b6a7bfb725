// q8_0: 32 signed bytes and a half-precision scale. Layout: d f16, q i8[32]. y = d * q.
#pragma once

#include "formats/search.h"
#include "formats/tile.h"

namespace kvant {

struct Q8_0 {
  static constexpr FormatInfo kInfo = {"q8_0", 8, 32, 34, 32, true, false};
  static constexpr bool kHasMin = false;
  static constexpr const int8_t* kTable = nullptr;

  KVANT_INLINE void unpack(const uint8_t* block, UnpackedOf<Q8_0>& u) {
    u.scale[0] = load_f16_field(block);
    memcpy(u.codes, block + 2, 32);
  }

  // As many blocks as there are lanes at a time, as they lie: all their largest magnitudes, one
  // division for all, then the codes. Magnitudes are compared as integers, which order like them
  // and show what is not finite.
  template <class V>
  KVANT_INLINE bool encode_row(const float* x, uint8_t* out, int64_t blocks) {
    using S = Search<V>;
    constexpr int kLanes = V::kLanes;
    for (int64_t first = 0; first < blocks; first += kLanes, x += 32 * kLanes, out += 34 * kLanes) {
      const int count = blocks - first < kLanes ? int(blocks - first) : kLanes;
      typename V::I largest[kLanes];
      for (int b = 0; b < kLanes; ++b) {
        const float* block = x + 32 * (b < count ? b : count - 1);
        largest[b] = V::splat_i(0);
        for (int i = 0; i < 32; i += kLanes) {
          largest[b] = V::imax(largest[b], V::bits(V::load(block + i)) & V::splat_i(0x7fffffff));
        }
      }
      const auto magnitude = V::largest_of_each(largest);
      const auto amax = V::from_bits(magnitude);
      if (V::any(!(amax <= V::splat(3.40282347e+38f)))) return false;
      const auto d = amax / V::splat(127.0f);
      alignas(64) float id[kLanes];
      V::store(id, V::select(d != S::zero(), V::splat(1.0f) / d, S::zero()));
      const LaneHalves<V> halves(d);
      for (int b = 0; b < count; ++b) {
        store_u16(out + 34 * b, halves[b]);
        const auto scale = V::splat(id[b]);
        for (int i = 0; i < 32; i += kLanes) {
          V::store_bytes(out + 34 * b + 2 + i, S::round_away(V::load(x + 32 * b + i) * scale));
        }
      }
    }
    return true;
  }

  static constexpr Plane kCodePlanes[] = {{2, 32, 4}}, kScalePlanes[] = {{0, 2, 2}};
  static constexpr int kCodeMax = 255, kCodeOffset = 0;

  template <class V, class Out>
  KVANT_INLINE void expand(const PackedBlock<V>& in, Out&& out) {
    out.put_scale(0, in.scale_half(0));
    const auto offset = splat_bytes<V>(V::kWideOffset);
    each_place<V, 8>([&](int k) KVANT_LAMBDA { out.put(k, in.code_word(k) ^ offset); });
  }
};

}  // namespace kvant
