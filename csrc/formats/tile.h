// How sixteen rows of blocks lie when packed for multiplication, and what they are expanded to.
//
// A packed tile holds sixteen rows, chunk after chunk of 256 columns, first the codes of all blocks of
// the chunk and then their scales, so that reading a tile reads memory in order. Within a block the
// bytes of each plane (a run of bytes of the file's block) are taken word by word, the same word of all
// sixteen rows side by side: [word][row][bytes of a word]. ggml's blocks keep four neighbouring
// elements in four neighbouring bytes, so words of four bytes are what a dot-product instruction eats.
// Every byte of the file is kept, and nothing is added.
//
// For this a block format gives
//   kCodePlanes, kScalePlanes   which bytes go where; code planes have words of four bytes
//   kCodeMax, kCodeOffset       codes are stored as code + kCodeOffset, in 0 .. kCodeMax; 255 stands for
//                               the whole range of eight bits, with V::kWideOffset as offset
//   kWideScales                 if scales may be below 2^-40 without being 0
//   expand<V>(in, out)          one block of as many rows as V has lanes, through out.put, put_scale
//                               and put_neg_min with constant places: `out` may be a tile or registers
#pragma once

#include "formats/format.h"

namespace kvant {

constexpr int kTileRows = 16;
constexpr int kChunk = 256;
// 1.5 * 2^23. Integers below 2^22 added to its bits are added to the number itself, which saves the
// conversion of sums: they start here.
constexpr float kMagic = 12582912.0f;
constexpr int32_t kMagicBits = 0x4b400000;

struct Plane {
  int32_t offset, bytes, word;
};

// Sixteen rows of one chunk, ready for dot products: four neighbouring codes of every row, then the
// next four. w = scale * (code - offset) + neg_min, for each group of 16 or 32 columns.
struct RowTile {
  alignas(64) uint8_t codes[kChunk / 4][kTileRows][4];
  alignas(64) float scale[kChunk / 16][kTileRows];
  alignas(64) float neg_min[kChunk / 16][kTileRows];
  // Where V::kSteady, of the first group of each 32: -scale * kMagic, and whether that is exact for all.
  alignas(64) float shift[kChunk / 32][kTileRows];
  bool steady;
};

// A packed block, from the row of the first lane on.
template <class V>
struct PackedBlock {
  using I = typename V::I;
  const uint8_t* codes;
  const uint8_t* scales;
  int lane;

  // Word i of the code planes.
  KVANT_MEMBER I code_word(int i) const { return load(codes + 64 * i + 4 * lane); }
  // What lies `at` bytes behind the beginning of the scale planes of every row.
  KVANT_MEMBER I scale_word(int at) const { return load(scales + 16 * at + 4 * lane); }
  KVANT_MEMBER typename V::F scale_half(int at) const {
    uint16_t halves[V::kLanes];
    memcpy(halves, scales + 16 * at + 2 * lane, sizeof halves);
    return V::load_f16(halves);
  }
  KVANT_MEMBER I scale_byte(int at) const { return V::load_u8(scales + 16 * at + lane); }

 private:
  KVANT_INLINE I load(const uint8_t* p) { return V::load_i(reinterpret_cast<const int32_t*>(p)); }
};

// Where an expanded block goes in a tile.
template <class V>
struct TileBlock {
  uint8_t* codes;
  float *scale, *neg_min;

  // Codes of the elements 4k .. 4k + 3.
  KVANT_MEMBER void put(int k, typename V::I codes4) const {
    V::store_i(reinterpret_cast<int32_t*>(codes + 64 * k), codes4);
  }
  KVANT_MEMBER void put_scale(int group, typename V::F s) const { V::store(scale + kTileRows * group, s); }
  KVANT_MEMBER void put_neg_min(int group, typename V::F m) const { V::store(neg_min + kTileRows * group, m); }
};

// f(0, first byte of every lane), f(1, second) ...
template <class V, class Use>
KVANT_INLINE void each_byte(typename V::I word, Use&& use) {
  const auto low = V::splat_i(255);
  use(0, word & low);
  use(1, word.template shr<8>() & low);
  use(2, word.template shr<16>() & low);
  use(3, word.template shr<24>());
}

template <class V>
KVANT_INLINE typename V::I splat_bytes(int byte) {
  return V::splat_i(int32_t(uint32_t(byte) * 0x01010101u));
}

// use.operator()<i>() for i in 0 .. n - 1: shifts need constants.
template <int n, class Use>
KVANT_INLINE void each(Use&& use) {
  if constexpr (n > 0) {
    each<n - 1>(use);
    use.template operator()<n - 1>();
  }
}

// use(i) for i in 0 .. n - 1: unrolled where places must be constants because `out` is registers.
template <class V, int n, class Use>
KVANT_INLINE void each_place(Use&& use) {
  if constexpr (V::kStreams) {
    each<n>([&]<int i>() KVANT_LAMBDA { use(i); });
  } else {
    for (int i = 0; i < n; ++i) use(i);
  }
}

// Sixteen bytes of nibbles, from code word `word` on: the low ones are elements 4k .., the high ones
// those sixteen further.
template <class V, class Out, class Map>
KVANT_INLINE void expand_nibbles32(const PackedBlock<V>& in, int word, Out&& out, int k, Map&& map) {
  const auto low = splat_bytes<V>(15);
  each_place<V, 4>([&](int i) KVANT_LAMBDA {
    const auto w = in.code_word(word + i);
    out.put(k + i, map(i, w & low));
    out.put(k + 4 + i, map(4 + i, w.template shr<4>() & low));
  });
}

// The same, for codes that are the nibbles themselves.
template <class V, class Out>
KVANT_INLINE void expand_nibbles32(const PackedBlock<V>& in, int word, Out&& out, int k) {
  expand_nibbles32<V>(in, word, out, k, [](int, typename V::I codes) KVANT_LAMBDA { return codes; });
}

// Bits 0 .. 3 of every lane, one to a byte.
template <class V>
KVANT_INLINE typename V::I spread_four_bits(typename V::I bits) {
  const auto b = bits & V::splat_i(15);
  return ((b | b.template shl<7>()) | (b.template shl<14>() | b.template shl<21>())) & splat_bytes<V>(1);
}

}  // namespace kvant
