// How a cache stores keys and values: the codecs, and what their bytes mean. A row is the key or the value of one
// token and head, filled up with zeros to whole blocks of 32.
//
// A quantized codec gives
//   kName, kBits, kBlockBytes   bytes of a block in a row of a file; with kRowScale a row begins with its scale
//   kOffset, kTable             a code's value is code - kOffset, or kTable[code]
//   kHasMin, kRowScale          whether blocks carry a minimum; whether a row has one scale, else each block has
//   read, write                 a block of a row to 32 codes and back; codes are unsigned, below 2^kBits
// ggml's formats keep ggml's blocks. lm2, lm3 and lm4 index the codebooks of Lloyd and Max for a coordinate of a
// rotated vector (TurboQuant, Zandieh et al. 2025). kivi4 and kivi2 give values a scale and a minimum for each block,
// and keys one for each channel and kKeyGroup tokens (KIVI, Liu et al. 2024).
#pragma once

#include "formats/kivi.h"
#include "formats/list.h"
#include "formats/q6_0.h"

namespace kvant {

enum class KvCodec : int32_t { f32, f16, bf16, q8_0, q6_0, q5_1, q5_0, q4_1, q4_0, iq4_nl, lm4, lm3, lm2, kivi4, kivi2 };
constexpr int kKvCodecCount = 15, kFirstQuantized = int(KvCodec::q8_0);

constexpr int kKvBlock = 32;
// Of a key or a value.
constexpr int kMostKvDim = 1024, kMostKvBlocks = kMostKvDim / kKvBlock;

// Where the nibbles of a block of a file are: byte j holds elements j and j + 16.
KVANT_INLINE void read_nibbles(const uint8_t* from, uint8_t* codes) {
  const Bytes16 v = load_bytes16(from);
  const Bytes16 low = v & 15, high = v >> 4;
  memcpy(codes, &low, 16);
  memcpy(codes + 16, &high, 16);
}

KVANT_INLINE void write_nibbles(const uint8_t* codes, uint8_t* to) {
  for (int j = 0; j < 16; ++j) to[j] = uint8_t((codes[j] & 15) | (codes[j + 16] & 15) << 4);
}

// A block of ggml: scale, minimum where there is one, and from kCodes on the codes.
template <class Format_, int kBits_, int kOffset_>
struct GgmlCodec {
  using Format = Format_;
  static constexpr const char* kName = Format::kInfo.name;
  static constexpr int kBits = kBits_, kOffset = kOffset_, kBlockBytes = Format::kInfo.block_bytes;
  static constexpr bool kHasMin = Format::kHasMin, kRowScale = false;
  static constexpr const int8_t* kTable = Format::kTable;
  static constexpr int kCodes = kHasMin ? 4 : 2;

  KVANT_INLINE void read(const uint8_t* block, uint8_t* codes) {
    if constexpr (kBits == 8) {
      // Signed in the file.
      for (int i = 0; i < kKvBlock; ++i) codes[i] = uint8_t(block[kCodes + i] ^ 0x80);
    } else if constexpr (kBits == 5) {
      unpack_five_bits32(block + kCodes, block + kCodes + 4, reinterpret_cast<int8_t*>(codes), 0);
    } else {
      read_nibbles(block + kCodes, codes);
    }
  }

  KVANT_INLINE void write(const uint8_t* codes, uint8_t* block) {
    if constexpr (kBits == 8) {
      for (int i = 0; i < kKvBlock; ++i) block[kCodes + i] = uint8_t(codes[i] ^ 0x80);
    } else if constexpr (kBits == 5) {
      uint32_t fifth = 0;
      for (int i = 0; i < kKvBlock; ++i) fifth |= uint32_t(codes[i] >> 4) << i;
      store_u32(block + kCodes, fifth);
      write_nibbles(codes, block + kCodes + 4);
    } else {
      write_nibbles(codes, block + kCodes);
    }
  }
};

// q6_0 of ik_llama.cpp (formats/q6_0.h): scale, upper pairs of bits, nibbles.
struct KvQ6_0 {
  using Format = Q6_0;
  static constexpr const char* kName = "q6_0";
  static constexpr int kBits = 6, kOffset = 32, kBlockBytes = 26;
  static constexpr bool kHasMin = false, kRowScale = false;
  static constexpr const int8_t* kTable = nullptr;

  KVANT_INLINE void read(const uint8_t* block, uint8_t* codes) {
    read_nibbles(block + 10, codes);
    for (int j = 0; j < 16; ++j) {
      const int pairs = block[2 + j % 8] >> (4 * (j / 8));
      codes[j] |= uint8_t((pairs & 3) << 4);
      codes[j + 16] |= uint8_t((pairs >> 2 & 3) << 4);
    }
  }

  KVANT_INLINE void write(const uint8_t* codes, uint8_t* block) {
    write_nibbles(codes, block + 10);
    memset(block + 2, 0, 8);
    for (int j = 0; j < 16; ++j) {
      block[2 + j % 8] |= uint8_t((codes[j] >> 4 | codes[j + 16] >> 4 << 2) << (4 * (j / 8)));
    }
  }
};

// Centroids of the marginal of a unit vector of 128 dimensions, 127 times those in units of the largest; and the
// midpoints between them, in units of the root mean square of a row.
alignas(16) constexpr int8_t kLm2Values[16] = {-127, -38, 38, 127};
alignas(16) constexpr int8_t kLm3Values[16] = {-127, -80, -45, -15, 15, 45, 80, 127};
alignas(16) constexpr int8_t kLm4Values[16] = {-127, -97, -76, -59, -44, -31, -18, -6, 6, 18, 31, 44, 59, 76, 97, 127};
constexpr float kLm2Steps[3] = {-0.9788f, 0.0f, 0.9788f};
constexpr float kLm3Steps[7] = {-1.733875f, -1.044815f, -0.498785f, 0.0f, 0.498785f, 1.044815f, 1.733875f};
constexpr float kLm4Steps[15] = {-2.366685f, -1.82436f, -1.42527f, -1.091685f, -0.7947f, -0.519495f, -0.256845f, 0.0f,
                                 0.256845f,  0.519495f, 0.7947f,   1.091685f,  1.42527f, 1.82436f,   2.366685f};

// A row: its scale, then blocks without one. lm4: nibbles. lm2: byte j has two bits each of elements j, j + 8, j + 16
// and j + 24. lm3: the lower two bits so, then the third, element j at bit j.
template <int kBits_>
struct LloydMax {
  static constexpr const char* kName = kBits_ == 4 ? "lm4" : kBits_ == 3 ? "lm3" : "lm2";
  static constexpr int kBits = kBits_, kOffset = 0, kBlockBytes = 4 * kBits;
  static constexpr bool kHasMin = false, kRowScale = true;
  static constexpr const int8_t* kTable = kBits == 4 ? kLm4Values : kBits == 3 ? kLm3Values : kLm2Values;
  static constexpr const float* kSteps = kBits == 4 ? kLm4Steps : kBits == 3 ? kLm3Steps : kLm2Steps;

  KVANT_INLINE void read(const uint8_t* block, uint8_t* codes) {
    if constexpr (kBits == 4) {
      read_nibbles(block, codes);
    } else {
      for (int i = 0; i < kKvBlock; ++i) {
        codes[i] = uint8_t(block[i % 8] >> (2 * (i / 8)) & 3);
        if constexpr (kBits == 3) codes[i] |= uint8_t((block[8 + i / 8] >> (i % 8) & 1) << 2);
      }
    }
  }

  KVANT_INLINE void write(const uint8_t* codes, uint8_t* block) {
    if constexpr (kBits == 4) {
      write_nibbles(codes, block);
    } else {
      memset(block, 0, kBlockBytes);
      for (int i = 0; i < kKvBlock; ++i) {
        block[i % 8] |= uint8_t((codes[i] & 3) << (2 * (i / 8)));
        if constexpr (kBits == 3) block[8 + i / 8] |= uint8_t((codes[i] >> 2) << (i % 8));
      }
    }
  }
};

// Rows as such blocks, and keys group by group: a group is coded once its tokens are all there.
template <int kBits_>
struct Kivi {
  using Format = KiviBlock<kBits_>;
  static constexpr const char* kName = Format::kInfo.name;
  static constexpr int kBits = kBits_, kOffset = 0, kBlockBytes = Format::kInfo.block_bytes, kKeyGroup = 32;
  static constexpr bool kHasMin = true, kRowScale = false;
  static constexpr const int8_t* kTable = nullptr;

  KVANT_INLINE void read(const uint8_t* block, uint8_t* codes) { LloydMax<kBits>::read(block + 4, codes); }
  KVANT_INLINE void write(const uint8_t* codes, uint8_t* block) { LloydMax<kBits>::write(codes, block + 4); }
};

// In the order of KvCodec, from the first that quantizes on.
using QuantizedCodecs = TypeList<GgmlCodec<Q8_0, 8, 128>, KvQ6_0, GgmlCodec<Q5_1, 5, 0>, GgmlCodec<Q5_0, 5, 16>,
                                 GgmlCodec<Q4_1, 4, 0>, GgmlCodec<Q4_0, 4, 8>, GgmlCodec<IQ4_NL, 4, 0>, LloydMax<4>,
                                 LloydMax<3>, LloydMax<2>, Kivi<4>, Kivi<2>>;

// What the rest of the library knows of a codec.
struct KvCodecInfo {
  const char* name;
  int32_t bits, block_bytes;  // of an element's code (of a float: all of it); of a block in a row
  bool quantized, has_min, row_scale;
  int32_t ggml_type;          // that its rows are blocks of, or -1
  int32_t offset;             // a code's value is table[code], or code - offset
  const int8_t* table;
  int32_t key_group;          // tokens whose keys share a scale for each channel; 1 where each key has its own

  // Whether scales are never below zero, as the weights that multiply values must be; others bring their sign along.
  constexpr bool positive() const { return quantized && (bits == 8 || has_min || row_scale); }
};

template <class C>
constexpr int ggml_type_of() {
  if constexpr (requires { typename C::Format; }) return C::Format::kInfo.ggml_type;
  else return -1;
}

template <class C>
constexpr int key_group_of() {
  if constexpr (requires { C::kKeyGroup; }) return C::kKeyGroup;
  else return 1;
}

struct KvTable {
  KvCodecInfo row[kKvCodecCount];
};

template <class... C>
constexpr KvTable make_kv_table(TypeList<C...>) {
  return {{{"f32", 32, 128, false, false, false, 0, 0, nullptr, 1},
           {"f16", 16, 64, false, false, false, 1, 0, nullptr, 1},
           {"bf16", 16, 64, false, false, false, 30, 0, nullptr, 1},
           {C::kName, C::kBits, C::kBlockBytes, true, C::kHasMin, C::kRowScale, ggml_type_of<C>(), C::kOffset, C::kTable,
            key_group_of<C>()}...}};
}

constexpr KvTable kKvCodecs = make_kv_table(QuantizedCodecs{});

// Pages of a head hold so many tokens, in tiles of sixteen; attention takes pages in chunks.
constexpr int kPageTokens = 64, kChunkPages = 8;
constexpr int64_t kChunkTokens = kPageTokens * kChunkPages;

// Blocks of a quantized row; numbers that a float value takes, whole vectors.
KVANT_INLINE constexpr int32_t kv_blocks(int32_t dim) { return (dim + kKvBlock - 1) / kKvBlock; }
KVANT_INLINE constexpr int32_t kv_width(int32_t dim) { return (dim + 15) / 16 * 16; }

// Bytes of the keys or the values of a page. 32 tokens of 32 channels have as many scales one way as the other.
KVANT_INLINE constexpr int64_t kv_page_bytes(const KvCodecInfo& codec, int32_t dim, bool value) {
  if (!codec.quantized) return int64_t(kPageTokens) * codec.bits / 8 * (value ? kv_width(dim) : dim);
  const int64_t blocks = kv_blocks(dim), scales = (codec.row_scale ? 1 : blocks) * (codec.has_min ? 2 : 1);
  return kPageTokens * (4 * codec.bits * blocks + 2 * scales);
}

// Bytes of one row of a file.
KVANT_INLINE constexpr int64_t kv_row_bytes(const KvCodecInfo& codec, int32_t dim) {
  if (!codec.quantized) return int64_t(dim) * codec.bits / 8;
  return int64_t(kv_blocks(dim)) * codec.block_bytes + (codec.row_scale ? 2 : 0);
}

}  // namespace kvant
