// What the K formats share: sub-block scales in lanes, and two-bit planes of 128 elements.
#pragma once

#include "formats/search.h"
#include "formats/tile.h"

namespace kvant {

// values[j][lane] as eight-bit integers, j-th sub-block of every block.
template <class V, int n>
struct LaneBytes {
  alignas(64) int32_t v[n][16];
  KVANT_MEMBER void set(int j, typename V::I x) { V::store_i(v[j], x & V::splat_i(255)); }
  KVANT_MEMBER uint8_t get(int j, int lane) const { return uint8_t(v[j][lane]); }
  KVANT_MEMBER void put(int j, int lane, int x) { v[j][lane] = x; }
  KVANT_MEMBER typename V::F as_f32(int j) const { return V::to_f32(V::load_i(v[j])); }
};

// Element 128h + 32t + l is bit pair t of byte 32h + l.
KVANT_INLINE void unpack_pairs256(const uint8_t* packed, int8_t* codes) {
  for (int h = 0; h < 2; ++h) {
    for (int t = 0; t < 4; ++t) {
      for (int l = 0; l < 32; ++l) codes[128 * h + 32 * t + l] = int8_t((packed[32 * h + l] >> (2 * t)) & 3);
    }
  }
}

// The low two bits of 256 codes into 64 bytes.
template <class V>
KVANT_INLINE void pack_pairs256(const ByteTile<V, 256>& codes, ByteTile<V, 64>& packed) {
  const auto pair = [&](int k) { return codes.word(k) & V::splat_i(0x03030303); };
  for (int h = 0; h < 2; ++h) {
    for (int k = 0; k < 8; ++k) {
      const int c = 32 * h + k;
      packed.set(8 * h + k, (pair(c) | pair(c + 8).template shl<2>()) |
                                (pair(c + 16).template shl<4>() | pair(c + 24).template shl<6>()));
    }
  }
}

// Final codes of one sub-block: nearest((x + min) / d) + bias, clamped; where d is zero the codes
// that the search left behind stay, as in ggml.
template <class V, int low, int high, class Tile, class Leftover>
KVANT_INLINE void requantize(const float* x, int first, int n, typename V::F d, typename V::F min, Tile& codes,
                             Leftover&& leftover) {
  using S = Search<V>;
  const auto kept = d == S::zero();
  const bool any_kept = V::any(kept);
  for (int i = first; i < first + n; i += 4) {
    typename V::I c[4];
    for (int k = 0; k < 4; ++k) {
      const auto v = at<V>(x, i + k);
      c[k] = S::clamp(S::nearest_int((v + min) / d), low, high) - V::splat_i(low);
      if (any_kept) c[k] = V::select(kept, leftover(v, i + k), c[k]);
    }
    codes.put(i / 4, c[0], c[1], c[2], c[3]);
  }
}

// Pairs of 256 elements in sixteen words from `word` on; map(t, k, codes) makes them final, t the bit
// pair and k the word of the result.
template <class V, class Out, class Map>
KVANT_INLINE void expand_pairs256(const PackedBlock<V>& in, int word, Out&& out, Map&& map) {
  const auto low = splat_bytes<V>(3);
  each_place<V, 2>([&](int h) KVANT_LAMBDA {
    each_place<V, 8>([&](int i) KVANT_LAMBDA {
      const auto w = in.code_word(word + 8 * h + i);
      const int k = 32 * h + i;
      out.put(k, map(k, w & low));
      out.put(k + 8, map(k + 8, w.template shr<2>() & low));
      out.put(k + 16, map(k + 16, w.template shr<4>() & low));
      out.put(k + 24, map(k + 24, w.template shr<6>() & low));
    });
  });
}

template <class V, class Out>
KVANT_INLINE void expand_pairs256(const PackedBlock<V>& in, int word, Out&& out) {
  expand_pairs256<V>(in, word, out, [](int, typename V::I codes) KVANT_LAMBDA { return codes; });
}

}  // namespace kvant
