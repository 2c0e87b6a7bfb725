// q6_0 of ik_llama.cpp, for caches alone: d f16, upper pairs of bits [8], nibbles [16]; y = d * (q - 32). Byte j % 8 of
// the pairs holds, from bit 4 (j / 8) on, those of element j and then those of element j + 16; nibbles lie as in q4_0.
#pragma once

#include "formats/q4.h"

namespace kvant {

struct Q6_0 {
  static constexpr FormatInfo kInfo = {"q6_0", 133, 32, 26, 32, true, false};

  template <class V, bool kWeighted>
  KVANT_INLINE void encode(const Batch<V>& in, uint8_t* out, int count) {
    ByteTile<V, 32> codes;
    const auto d = legacy_symmetric<V, 32>(in.x, [&](int k, auto... c) { codes.put(k, c...); });
    ByteTile<V, 16> packed, pairs;
    pack_nibbles32<V>(codes, 0, packed, 0);
    const auto upper = [&](int k) { return codes.word(k).template shr<4>() & V::splat_i(0x03030303); };
    for (int k = 0; k < 2; ++k) {
      pairs.set(k, (upper(k) | upper(k + 4).template shl<2>()) |
                       (upper(k + 2) | upper(k + 6).template shl<2>()).template shl<4>());
      pairs.set(k + 2, V::splat_i(0));
    }
    packed.finish();
    pairs.finish();
    const LaneHalves<V> halves(d);
    for (int lane = 0; lane < count; ++lane, out += 26) {
      uint8_t two[16];
      pairs.read(lane, two);
      store_u16(out, halves[lane]);
      memcpy(out + 2, two, 8);
      packed.read(lane, out + 10);
    }
  }
};

}  // namespace kvant
