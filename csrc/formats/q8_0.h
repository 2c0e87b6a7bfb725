// q8_0: 32 signed bytes and a half-precision scale. Layout: d f16, q i8[32]. y = d * q.
#pragma once

#include "formats/search.h"

namespace kvant {

struct Q8_0 {
  static constexpr FormatInfo kInfo = {"q8_0", 8, 32, 34, 32, true, false};
  static constexpr bool kHasMin = false;
  static constexpr const int8_t* kTable = nullptr;

  KVANT_INLINE void unpack(const uint8_t* block, UnpackedOf<Q8_0>& u) {
    u.scale[0] = load_f16_field(block);
    memcpy(u.codes, block + 2, 32);
  }

  template <class V, bool kWeighted>
  KVANT_INLINE void encode(const Batch<V>& in, uint8_t* out, int count) {
    using S = Search<V>;
    using F = typename V::F;
    const F d = S::largest(in.x, 32) / V::splat(127.0f);
    const F id = V::select(d != S::zero(), V::splat(1.0f) / d, S::zero());
    ByteTile<V, 32> codes;
    for (int i = 0; i < 32; i += 4) {
      codes.put(i / 4, S::round_away(at<V>(in.x, i) * id), S::round_away(at<V>(in.x, i + 1) * id),
                S::round_away(at<V>(in.x, i + 2) * id), S::round_away(at<V>(in.x, i + 3) * id));
    }
    codes.finish();
    const LaneHalves<V> halves(d);
    for (int lane = 0; lane < count; ++lane, out += 34) {
      store_u16(out, halves[lane]);
      codes.read(lane, out + 2);
    }
  }
};

}  // namespace kvant
