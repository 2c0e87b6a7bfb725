// kivi4 and kivi2, for caches alone: scale f16, minimum f16, codes; y = d * q + m. The range of a group of 32 in 15 or 3
// steps, as "KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache" (Liu et al. 2024) has it. kivi4 is q4_1; of
// kivi2 byte j holds elements j, j + 8, j + 16 and j + 24 from the lowest bits on.
#pragma once

#include "formats/q4.h"

namespace kvant {

template <int kBits>
struct KiviBlock {
  static constexpr FormatInfo kInfo = {kBits == 4 ? "kivi4" : "kivi2", -1, 32, 4 + 4 * kBits, 32, true, false};

  template <class V, bool kWeighted>
  KVANT_INLINE void encode(const Batch<V>& in, uint8_t* out, int count) {
    ByteTile<V, 32> codes;
    typename V::F m;
    const auto put = [&](int k, auto... c) { codes.put(k, c...); };
    const auto d = legacy_affine<V, (1 << kBits) - 1, true>(in.x, m, put);
    ByteTile<V, 16> packed;
    if constexpr (kBits == 4) {
      pack_nibbles32<V>(codes, 0, packed, 0);
    } else {
      for (int k = 0; k < 2; ++k) {
        packed.set(k, (codes.word(k) | codes.word(k + 2).template shl<2>()) |
                          (codes.word(k + 4).template shl<4>() | codes.word(k + 6).template shl<6>()));
        packed.set(k + 2, V::splat_i(0));
      }
    }
    packed.finish();
    const LaneHalves<V> scales(d), mins(m);
    for (int lane = 0; lane < count; ++lane, out += kInfo.block_bytes) {
      uint8_t bytes[16];
      packed.read(lane, bytes);
      store_u16(out, scales[lane]);
      store_u16(out + 2, mins[lane]);
      memcpy(out + 4, bytes, 4 * kBits);
    }
  }
};

}  // namespace kvant
