// Pages of quantized keys and values. Both are tiles of sixteen tokens by blocks of 32 elements, each block eight
// steps of sixteen lanes of four codes, so that one dot product instruction takes a step:
//   of keys     a lane is a token, step s holds its elements 4 s .. 4 s + 3
//   of values   a lane is an element of a half of the block, step 4 h + q holds tokens 4 q .. 4 q + 3 of half h
// Codes of fewer than eight bits are cut into planes, for every block one after the other:
//   four bits   word i: step i in the low, step i + 4 in the high nibbles
//   two bits    word s % 2: step s at bit 2 (s / 2)
//   one bit     step s at bit s
// Words are [lane][4] bytes. Codes of values of eight bits are signed, all others as in formats/kv.h. Behind the codes
// lie the scales as halves, [block][token], or [token] where a row has one, and then the minima.
#pragma once

#include "kernels/attend_kernels.h"
#include "kernels/groups.h"

namespace kvant {

// Lines of the next page, as many as this work's share of a page's; a unit is about ten instructions.
KVANT_INLINE void ask(NextPage& next, int units) {
  next.done += units;
  int64_t due = int64_t(next.done) * next.rate >> 12;
  if (due > next.lines) due = next.lines;
  for (; next.asked < due; ++next.asked) {
    const uint8_t* from = next.from + 64 * next.asked;
    for (int i = 0; i < NextPage::kPlaces; ++i) __builtin_prefetch(from + int64_t(64) * next.lines * i);
  }
}

constexpr int kTileTokens = 16, kTiles = kPageTokens / kTileTokens;
// Of a block of a tile, a byte a code.
constexpr int kStepBytes = 64, kBlockCodes = 8 * kStepBytes;

template <class C>
struct KvPlanes {
  static constexpr bool kFour = C::kBits >= 4 && C::kBits < 8, kTwo = C::kBits == 6 || C::kBits < 4,
                        kOne = C::kBits == 5 || C::kBits == 3;
  static constexpr int kTwoAt = kFour ? 256 : 0, kOneAt = kTwoAt + (kTwo ? 128 : 0);
  static constexpr int kBytes = kStepBytes * C::kBits;  // of a block of a tile
  static constexpr int kTop = kFour ? 4 : 2;            // where the bits of the last plane begin in a code
};

// The scales of block b and the minima of a page's side.
template <class C>
struct KvScales {
  const uint8_t* scales;
  int64_t stride, mins;

  KVANT_MEMBER KvScales(const uint8_t* side, int blocks)
      : scales(side + int64_t(kTiles) * blocks * KvPlanes<C>::kBytes),
        stride(C::kRowScale ? 0 : 2 * kPageTokens),
        mins(2 * kPageTokens * int64_t(C::kRowScale ? 1 : blocks)) {}
  KVANT_MEMBER const uint16_t* scale(int b, int token) const {
    return reinterpret_cast<const uint16_t*>(scales + b * stride) + token;
  }
  KVANT_MEMBER const uint16_t* min(int b, int token) const {
    return reinterpret_cast<const uint16_t*>(scales + mins + b * stride) + token;
  }
};

KVANT_INLINE uint32_t spread(uint32_t byte) { return byte * 0x01010101u; }

// Where the codes of a token go.
template <class C>
struct KeyPlace {
  // One block of codes into the place of a token.
  KVANT_INLINE void put(const uint8_t* codes, uint8_t* block, int token) {
    using P = KvPlanes<C>;
    uint8_t* lane = block + 4 * token;
    const auto word = [&](int s) KVANT_LAMBDA { return load_u32(codes + 4 * s); };
    if constexpr (C::kBits == 8) {
      for (int s = 0; s < 8; ++s) store_u32(lane + kStepBytes * s, word(s));
    }
    if constexpr (P::kFour) {
      for (int i = 0; i < 4; ++i) {
        store_u32(lane + kStepBytes * i, (word(i) & spread(15)) | (word(i + 4) & spread(15)) << 4);
      }
    }
    if constexpr (P::kTwo) {
      for (int p = 0; p < 2; ++p) {
        uint32_t bits = 0;
        for (int m = 0; m < 4; ++m) bits |= (word(p + 2 * m) >> (P::kFour ? 4 : 0) & spread(3)) << (2 * m);
        store_u32(lane + P::kTwoAt + kStepBytes * p, bits);
      }
    }
    if constexpr (P::kOne) {
      uint32_t bits = 0;
      for (int s = 0; s < 8; ++s) bits |= (word(s) >> P::kTop & spread(1)) << s;
      store_u32(lane + P::kOneAt, bits);
    }
  }

  KVANT_INLINE void take(const uint8_t* block, int token, uint8_t* codes) {
    using P = KvPlanes<C>;
    const uint8_t* lane = block + 4 * token;
    for (int s = 0; s < 8; ++s) {
      uint32_t word = 0;
      if constexpr (C::kBits == 8) word = load_u32(lane + kStepBytes * s);
      if constexpr (P::kFour) word = load_u32(lane + kStepBytes * (s % 4)) >> (4 * (s / 4)) & spread(15);
      if constexpr (P::kTwo) {
        word |= (load_u32(lane + P::kTwoAt + kStepBytes * (s % 2)) >> (2 * (s / 2)) & spread(3)) << (P::kFour ? 4 : 0);
      }
      if constexpr (P::kOne) word |= (load_u32(lane + P::kOneAt) >> s & spread(1)) << P::kTop;
      store_u32(codes + 4 * s, word);
    }
  }
};

template <class C>
struct ValuePlace {
  // Bytes of tokens lie side by side, and those of a plane of few bits are shared.
  KVANT_INLINE void put(const uint8_t* codes, uint8_t* block, int token) {
    using P = KvPlanes<C>;
    const int quad = token / 4;
    uint8_t* at = block + token % 4;
    if constexpr (C::kBits == 8) {
      uint8_t *low = at + kStepBytes * quad, *high = low + 4 * kStepBytes;
      for (int e = 0; e < 16; ++e) {
        low[4 * e] = uint8_t(codes[e] ^ 0x80);
        high[4 * e] = uint8_t(codes[e + 16] ^ 0x80);
      }
    }
    if constexpr (P::kFour) {
      uint8_t* to = at + kStepBytes * quad;
      for (int e = 0; e < 16; ++e) to[4 * e] = uint8_t((codes[e] & 15) | codes[e + 16] << 4);
    }
    if constexpr (P::kTwo) {
      uint8_t* to = at + P::kTwoAt + kStepBytes * (quad % 2);
      const int shift = 2 * (quad / 2), down = P::kFour ? 4 : 0;
      const uint8_t others = uint8_t(~(0x33 << shift));
      for (int e = 0; e < 16; ++e) {
        const int bits = (codes[e] >> down & 3) | (codes[e + 16] >> down & 3) << 4;
        to[4 * e] = uint8_t((to[4 * e] & others) | bits << shift);
      }
    }
    if constexpr (P::kOne) {
      uint8_t* to = at + P::kOneAt;
      const uint8_t others = uint8_t(~(0x11 << quad));
      for (int e = 0; e < 16; ++e) {
        const int bits = (codes[e] >> P::kTop & 1) | (codes[e + 16] >> P::kTop & 1) << 4;
        to[4 * e] = uint8_t((to[4 * e] & others) | bits << quad);
      }
    }
  }

  KVANT_INLINE void take(const uint8_t* block, int token, uint8_t* codes) {
    using P = KvPlanes<C>;
    const uint8_t* at = block + token % 4;
    for (int i = 0; i < kKvBlock; ++i) {
      const int e = i % 16, s = i / 16 * 4 + token / 4;
      int code = 0;
      if constexpr (C::kBits == 8) code = at[kStepBytes * s + 4 * e] ^ 0x80;
      if constexpr (P::kFour) code = at[kStepBytes * (s % 4) + 4 * e] >> (4 * (s / 4)) & 15;
      if constexpr (P::kTwo) {
        code |= (at[P::kTwoAt + kStepBytes * (s % 2) + 4 * e] >> (2 * (s / 2)) & 3) << (P::kFour ? 4 : 0);
      }
      if constexpr (P::kOne) code |= (at[P::kOneAt + 4 * e] >> s & 1) << P::kTop;
      codes[i] = uint8_t(code);
    }
  }
};

// `count` rows into a side of a page, from the place `token` on.
template <class V, class C, template <class> class Place>
void put_rows(const KvRows& rows, int count, int blocks, uint8_t* side, int token) noexcept {
  constexpr int kBytes = KvPlanes<C>::kBytes;
  const KvScales<C> place(side, blocks);
  for (int r = 0; r < count; ++r, ++token) {
    uint8_t* tile = side + int64_t(token / kTileTokens) * blocks * kBytes;
    for (int b = 0; b < blocks; ++b) {
      Place<C>::put(rows.codes + (int64_t(r) * blocks + b) * kKvBlock, tile + b * kBytes, token % kTileTokens);
      if (C::kRowScale && b > 0) continue;
      *const_cast<uint16_t*>(place.scale(b, token)) = rows.scales[r * blocks + b];
      if constexpr (C::kHasMin) *const_cast<uint16_t*>(place.min(b, token)) = rows.mins[r * blocks + b];
    }
  }
}

template <class V, class C, template <class> class Place>
void take_rows(const uint8_t* side, int token, int count, int blocks, const KvRows& rows) noexcept {
  constexpr int kBytes = KvPlanes<C>::kBytes;
  const KvScales<C> place(side, blocks);
  for (int r = 0; r < count; ++r, ++token) {
    const uint8_t* tile = side + int64_t(token / kTileTokens) * blocks * kBytes;
    for (int b = 0; b < blocks; ++b) {
      Place<C>::take(tile + b * kBytes, token % kTileTokens, rows.codes + (int64_t(r) * blocks + b) * kKvBlock);
      rows.scales[r * blocks + b] = *place.scale(b, token);
      if constexpr (C::kHasMin) rows.mins[r * blocks + b] = *place.min(b, token);
    }
  }
}

// Rows of a file to codes and back. By V for its linkage alone, as what follows.
template <class V, class C>
void read_rows(const uint8_t* bytes, int count, int blocks, const KvRows& rows) noexcept {
  for (int r = 0; r < count; ++r) {
    const uint8_t* row = bytes;
    if (C::kRowScale) bytes += 2;
    for (int b = 0; b < blocks; ++b, bytes += C::kBlockBytes) {
      C::read(bytes, rows.codes + (int64_t(r) * blocks + b) * kKvBlock);
      rows.scales[r * blocks + b] = load_u16(C::kRowScale ? row : bytes);
      if constexpr (C::kHasMin) rows.mins[r * blocks + b] = load_u16(bytes + 2);
    }
  }
}

template <class V, class C>
void write_rows(const KvRows& rows, int count, int blocks, uint8_t* bytes) noexcept {
  for (int r = 0; r < count; ++r) {
    if (C::kRowScale) {
      store_u16(bytes, rows.scales[r * blocks]);
      bytes += 2;
    }
    for (int b = 0; b < blocks; ++b, bytes += C::kBlockBytes) {
      if (!C::kRowScale) store_u16(bytes, rows.scales[r * blocks + b]);
      if constexpr (C::kHasMin) store_u16(bytes + 2, rows.mins[r * blocks + b]);
      C::write(rows.codes + (int64_t(r) * blocks + b) * kKvBlock, bytes);
    }
  }
}

template <class V, int kShift>
KVANT_INLINE typename V::I down(typename V::I a) {
  if constexpr (kShift == 0) return a;
  else return a.template shr<kShift>();
}

// put(Count<s>, codes[tile]) for the eight steps of a block of some tiles, `stride` apart, from lane `lane` on.
template <class V, class C, int kT, class Put>
KVANT_INLINE void each_step(const uint8_t* block, int64_t stride, int lane, Put&& put) {
  using P = KvPlanes<C>;
  using I = typename V::I;
  const auto words = [&](int at, I (&out)[kT]) KVANT_LAMBDA {
    KVANT_UNROLL for (int t = 0; t < kT; ++t) {
      out[t] = V::load_i(reinterpret_cast<const int32_t*>(block + t * stride + at + 4 * lane));
    }
  };
  I one[kT];
  if constexpr (P::kOne) words(P::kOneAt, one);
  each<4>([&]<int i>() KVANT_LAMBDA {
    I nibbles[kT];
    if constexpr (P::kFour) words(kStepBytes * i, nibbles);
    each<2>([&]<int h>() KVANT_LAMBDA {
      constexpr int s = i + 4 * h;
      I code[kT];
      if constexpr (C::kBits == 8) words(kStepBytes * s, code);
      if constexpr (P::kTwo) words(P::kTwoAt + kStepBytes * (s % 2), code);
      KVANT_UNROLL for (int t = 0; t < kT; ++t) {
        if constexpr (P::kTwo) code[t] = down<V, 2 * (s / 2)>(code[t]) & splat_bytes<V>(3);
        if constexpr (P::kFour) {
          const I four = down<V, 4 * h>(nibbles[t]) & splat_bytes<V>(15);
          if constexpr (P::kTwo) code[t] = four | code[t].template shl<4>();
          else code[t] = four;
        }
        if constexpr (P::kOne) code[t] = code[t] | (down<V, s>(one[t]) & splat_bytes<V>(1)).template shl<P::kTop>();
      }
      put(Count<s>(), code);
    });
  });
}

// Codes of keys, a byte each, for V::dot: unsigned, or over the whole range as it wants them.
template <class V, class C>
constexpr bool kWholeRange = C::kBits == 8 || C::kTable != nullptr;

template <class V, class C>
constexpr int key_offset() {
  return kWholeRange<V, C> ? V::kWideOffset : C::kOffset;
}
template <class V, class C>
constexpr int key_class() {
  return V::dot_class(kWholeRange<V, C> ? 255 : (1 << C::kBits) - 1);
}

// Whether a page's keys, or values, can be multiplied as they are.
template <class V, class C>
constexpr bool kKeysLie = C::kBits == 8 && V::kWideOffset == 128;
template <class C>
constexpr bool kValuesLie = C::kBits == 8;

// Scales that may be negative: those of the number of largest magnitude.
template <class C>
constexpr bool kSignedScale = !C::kHasMin && !C::kRowScale && C::kBits != 8;

// Values are codes, or their entries in the table, less an offset. Where there is a minimum they are centered, so that
// what rounded weights lack is not all of one sign; the minimum grows by as many scales. Of a negative scale the bits
// kTurn of a code are turned and the offset is one less: that negates the value.
template <class C>
constexpr int value_offset() {
  return C::kBits == 8 ? 0 : C::kHasMin ? 1 << (C::kBits - 1) : C::kOffset;
}
template <class C>
constexpr int kTurn = C::kTable != nullptr ? 255 : (1 << C::kBits) - 1;
template <class C>
constexpr bool kHasOffset = kSignedScale<C> || value_offset<C>() != 0;

template <class C>
struct KvValueTable {
  alignas(16) uint8_t of[16];
  static constexpr KvValueTable make(int offset) {
    KvValueTable table = {};
    for (int i = 0; i < 16; ++i) table.of[i] = uint8_t(C::kTable[i] + offset);
    return table;
  }
};

template <class V, class C>
KVANT_INLINE typename V::I key_code(typename V::I code) {
  if constexpr (C::kTable != nullptr) {
    alignas(16) static constexpr auto kTable = KvValueTable<C>::make(V::kWideOffset);
    return V::lookup_bytes(kTable.of, code);
  } else if constexpr (C::kBits == 8) {
    return code ^ splat_bytes<V>(0x80 ^ V::kWideOffset);
  } else {
    return code;
  }
}

// turn: kTurn in the bytes of four tokens with a negative scale, else 0.
template <class V, class C>
KVANT_INLINE typename V::I value_code(typename V::I code, const uint8_t* turn) {
  if constexpr (C::kTable != nullptr) code = V::lookup_bytes(reinterpret_cast<const uint8_t*>(C::kTable), code);
  if constexpr (kSignedScale<C>) code = code ^ V::splat_i(int32_t(load_u32(turn)));
  return code;
}

template <class V, class C>
KVANT_INLINE typename V::I turn_of(const uint16_t* scales) {
  return V::select(V::load_f16(scales) < V::splat(0.0f), V::splat_i(kTurn<C>), V::splat_i(0));
}

template <class V, class C>
void expand_keys(const uint8_t* side, int blocks, uint8_t* out, NextPage& next) noexcept {
  constexpr int kBytes = KvPlanes<C>::kBytes;
  for (int i = 0; i < kTiles * blocks; ++i, side += kBytes, out += kBlockCodes) {
    ask(next, 2);
    for (int lane = 0; lane < kTileTokens; lane += V::kLanes) {
      each_step<V, C, 1>(side, 0, lane, [&](auto s, typename V::I (&code)[1]) KVANT_LAMBDA {
        V::store_i(reinterpret_cast<int32_t*>(out + kStepBytes * s.value + 4 * lane), key_code<V, C>(code[0]));
      });
    }
  }
}

// Values as mix_rows wants them, to which the offset is left.
template <class V, class C>
void expand_values(const uint8_t* side, int blocks, uint8_t* out, NextPage& next) noexcept {
  constexpr int kBytes = KvPlanes<C>::kBytes;
  const KvScales<C> scales(side, blocks);
  for (int tile = 0; tile < kTiles; ++tile) {
    for (int b = 0; b < blocks; ++b, side += kBytes, out += kBlockCodes) {
      ask(next, 3);
      alignas(16) uint8_t turn[kTileTokens];
      if constexpr (kSignedScale<C>) {
        for (int lane = 0; lane < kTileTokens; lane += V::kLanes) {
          V::store_bytes(turn + lane, turn_of<V, C>(scales.scale(b, kTileTokens * tile + lane)));
        }
      }
      for (int lane = 0; lane < kTileTokens; lane += V::kLanes) {
        each_step<V, C, 1>(side, 0, lane, [&](auto s, typename V::I (&code)[1]) KVANT_LAMBDA {
          V::store_i(reinterpret_cast<int32_t*>(out + kStepBytes * s.value + 4 * lane),
                     value_code<V, C>(code[0], turn + 4 * (s.value % 4)));
        });
      }
    }
  }
}

}  // namespace kvant
