// What a format is, and the two shapes its code works on.
//
// A format class has
//   kInfo                      its row in the format table
//   kHasMin, kTable            whether groups carry a minimum; the 16-entry table codes index, or null
//   kRowMeanSquare             (optional) importance weights need the mean square of the whole row
//   valid(block)               (optional) more than "scales are finite"
//   unpack(block, u)           bytes -> codes, one scale (and minimum) per group: y = scale*code - min
//   encode<V, kWeighted>(in, out)  V::kLanes blocks at once, one per lane (formats that encode)
// and includes no intrinsics: V supplies the words. unpack() is plain C++ over bytes.
#pragma once

#include <cstdint>
#include <cstring>

#include "base/contracts.h"
#include "base/f16.h"

namespace kvant {

constexpr int kMaxBlock = 256;

struct FormatInfo {
  const char* name;
  int32_t ggml_type;    // id in GGUF files
  int32_t block;        // elements
  int32_t block_bytes;
  int32_t group;        // elements that share a scale
  bool can_encode;
  bool uses_importance; // whether importance weights change the bytes
};

template <int kBlock, int kGroup>
struct Unpacked {
  alignas(64) int8_t codes[kBlock];
  float scale[kBlock / kGroup];
  float min[kBlock / kGroup];
};

template <class Format>
using UnpackedOf = Unpacked<Format::kInfo.block, Format::kInfo.group>;

// V::kLanes blocks, transposed: x[i * kLanes + lane] is element i of the block of that lane.
template <class V>
struct Batch {
  const float* x;
  const float* importance;           // like x; null when there is none
  typename V::F row_mean_square;     // of the row each lane's block lies in; set when importance is
};

KVANT_INLINE uint16_t load_u16(const uint8_t* p) {
  uint16_t u;
  memcpy(&u, p, 2);
  return u;
}
KVANT_INLINE uint32_t load_u32(const uint8_t* p) {
  uint32_t u;
  memcpy(&u, p, 4);
  return u;
}
KVANT_INLINE uint64_t load_u64(const void* p) {
  uint64_t u;
  memcpy(&u, p, 8);
  return u;
}
KVANT_INLINE void store_u16(uint8_t* p, uint16_t u) { memcpy(p, &u, 2); }
KVANT_INLINE void store_u32(uint8_t* p, uint32_t u) { memcpy(p, &u, 4); }
KVANT_INLINE void store_u64(void* p, uint64_t u) { memcpy(p, &u, 8); }
KVANT_INLINE float load_f16_field(const uint8_t* p) { return f16_to_f32(load_u16(p)); }

// Halves of a float per lane, ready to be written into sixteen blocks. A NaN (overflowing blocks
// reach inf / inf) is stored as x86 makes it, whatever the processor.
template <class V>
struct LaneHalves {
  uint16_t bits[16];
  KVANT_MEMBER explicit LaneHalves(typename V::F x) {
    V::store_f16(bits, x);
    if (!V::any(x != x)) return;
    for (int lane = 0; lane < V::kLanes; ++lane) {
      if ((bits[lane] & 0x7fff) > 0x7c00) bits[lane] = 0xfe00;
    }
  }
  KVANT_MEMBER uint16_t operator[](int lane) const { return bits[lane]; }
};

// n bytes of each of sixteen blocks as 32-bit words, one block per lane: written and combined word
// by word, four bytes at once, then read block by block.
template <class V, int n>
class ByteTile {
 public:
  using I = typename V::I;

  // Bytes 4k .. 4k + 3 from the low eight bits of four values.
  KVANT_MEMBER void put(int k, I b0, I b1, I b2, I b3) {
    const I low = V::splat_i(255);
    set(k, ((b0 & low) | (b1 & low).template shl<8>()) | ((b2 & low).template shl<16>() | b3.template shl<24>()));
  }
  KVANT_MEMBER void set(int k, I word) { V::store_i(words_[k], word); }
  KVANT_MEMBER I word(int k) const { return V::load_i(words_[k]); }

  KVANT_MEMBER void finish() {
    for (int g = 0; g < n / 16; ++g) {
      V::store_quads(quads_[g][0][0], word(4 * g), word(4 * g + 1), word(4 * g + 2), word(4 * g + 3));
    }
  }
  KVANT_MEMBER void read(int lane, uint8_t* bytes) const {
    for (int g = 0; g < n / 16; ++g) memcpy(bytes + 16 * g, quads_[g][lane % 4][lane / 4], 16);
  }

 private:
  static_assert(n % 16 == 0);
  alignas(64) int32_t words_[n / 4][V::kLanes];
  alignas(64) uint8_t quads_[n / 16][4][4][16];
};

// Element i of the batch in every lane; writing it; where element i begins; room for n elements.
template <class V>
KVANT_INLINE typename V::F at(const float* x, int i) {
  return V::load(x + i * V::kLanes);
}

template <class V>
KVANT_INLINE void put(float* x, int i, typename V::F v) {
  V::store(x + i * V::kLanes, v);
}

template <class V>
KVANT_INLINE const float* from(const float* x, int i) {
  return x + i * V::kLanes;
}

template <class V, int n>
struct Tile {
  alignas(64) float v[n * V::kLanes];
  KVANT_MEMBER operator float*() { return v; }
};

}  // namespace kvant
