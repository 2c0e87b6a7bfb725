// Expanding: from a packed chunk to codes and scales that the dot products read (RowTile), or to floats.
#pragma once

#include "kernels/pack.h"

namespace kvant {

// What is subtracted from a code to have its value.
template <class V, class Format>
constexpr int code_offset() {
  return Format::kCodeMax == 255 ? V::kWideOffset : Format::kCodeOffset;
}

// The share of step b of `steps`.
KVANT_INLINE void ask_ahead(const Ahead& ahead, int b, int steps) {
  const int first = ahead.lines * b / steps, last = ahead.lines * (b + 1) / steps;
  for (int p = 0; p < ahead.places; ++p) {
    for (int i = first; i < last; ++i) __builtin_prefetch(ahead.from[p] + 64 * i);
  }
}

// `blocks` blocks of sixteen rows, packed.
template <class V, class Format>
void expand_chunk(const uint8_t* packed, int blocks, RowTile& tile, const Ahead& ahead) noexcept {
  constexpr int kCodes = plane_bytes<CodePlanes<Format>>(), kScales = plane_bytes<ScalePlanes<Format>>();
  constexpr int kBlock = Format::kInfo.block, kGroups = kBlock / Format::kInfo.group;
  const uint8_t *codes = packed, *scales = packed + int64_t(blocks) * kTileRows * kCodes;
  for (int b = 0; b < blocks; ++b) {
    ask_ahead(ahead, b, blocks);
    for (int lane = 0; lane < kTileRows; lane += V::kLanes) {
      Format::template expand<V>(
          PackedBlock<V>{codes + b * kCodes * kTileRows, scales + b * kScales * kTileRows, lane},
          TileBlock<V>{tile.codes[b * kBlock / 4][lane], &tile.scale[b * kGroups][lane],
                       &tile.neg_min[b * kGroups][lane]});
    }
  }
}

// Floats as they are, out[column][row].
template <class V, class Format>
KVANT_INLINE void widen_tile(const uint8_t* packed, int columns, float* out) {
  constexpr int kBytes = Format::kInfo.block_bytes, kPerWord = 4 / kBytes;
  constexpr bool kHalf = Format::kInfo.ggml_type == F16::kInfo.ggml_type;
  const int words = columns / kPerWord;
  for (int w = 0; w < words; ++w) {
    for (int lane = 0; lane < kTileRows; lane += V::kLanes) {
      const auto word = V::load_i(reinterpret_cast<const int32_t*>(packed + 64 * w + 4 * lane));
      float* to = out + w * kPerWord * kTileRows + lane;
      if constexpr (kBytes == 4) {
        V::store(to, V::from_bits(word));
      } else if constexpr (kHalf) {
        V::store(to, V::low_half(word));
        V::store(to + kTileRows, V::low_half(word.template shr<16>()));
      } else {
        V::store(to, V::from_bits(word.template shl<16>()));
        V::store(to + kTileRows, V::from_bits(word & V::splat_i(int32_t(0xffff0000u))));
      }
    }
  }
  for (int r = 0; words * kPerWord < columns && r < kTileRows; ++r) {
    const uint16_t last = load_u16(packed + 64 * words + 2 * r);
    out[words * kPerWord * kTileRows + r] = kHalf ? f16_to_f32(last) : bf16_to_f32(last);
  }
}

// Decoded weights, out[column][row]: scale * code, and the minimum taken off, each rounded.
template <class V, class Format>
void expand_floats(const uint8_t* packed, int blocks, RowTile& tile, float* out) noexcept {
  constexpr int kLanes = V::kLanes;
  if constexpr (Format::kInfo.block == 1) {
    widen_tile<V, Format>(packed, blocks, out);
  } else {
    expand_chunk<V, Format>(packed, blocks, tile, Ahead{});
    constexpr int kGroup = Format::kInfo.group;
    constexpr bool kSigned = Format::kCodeMax == 255 && V::kWideOffset == 0;
    for (int k = 0; k < blocks * Format::kInfo.block; k += 4) {
      for (int lane = 0; lane < kTileRows; lane += kLanes) {
        const auto scale = V::load(&tile.scale[k / kGroup][lane]);
        each_byte<V>(V::load_i(reinterpret_cast<const int32_t*>(tile.codes[k / 4][lane])),
                     [&](int j, auto code) KVANT_LAMBDA {
                       const auto sign = V::splat_i(kSigned ? 128 : 0);
                       auto y = scale * V::to_f32((code ^ sign) - sign - V::splat_i(code_offset<V, Format>()));
                       if constexpr (Format::kHasMin) y = y + V::load(&tile.neg_min[k / kGroup][lane]);
                       V::store(out + (k + j) * kTileRows + lane, y);
                     });
      }
    }
  }
}

}  // namespace kvant
