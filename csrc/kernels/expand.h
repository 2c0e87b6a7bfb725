// Expanding: from a packed chunk to codes and scales that the dot products read (RowTile), or to floats.
#pragma once

#include "kernels/pack.h"

namespace kvant {

// Codes of formats that expand by unpack() are moved into 0 .. 127.
constexpr int kUnpackedOffset = 64;

template <class Format>
constexpr int code_max() {
  if constexpr (ExpandsInVectors<Format>) return Format::kCodeMax;
  return 127;
}

// What is subtracted from a code to have its value.
template <class V, class Format>
constexpr int code_offset() {
  if constexpr (!ExpandsInVectors<Format>) return kUnpackedOffset;
  else return Format::kCodeMax == 255 ? V::kWideOffset : Format::kCodeOffset;
}

template <class V, class Format>
KVANT_INLINE void expand_unpacked(const uint8_t* packed, int blocks, RowTile& tile) {
  constexpr int kBlock = Format::kInfo.block, kBytes = Format::kInfo.block_bytes, kGroups = kBlock / Format::kInfo.group;
  for (int r = 0; r < kTileRows; ++r) {
    for (int b = 0; b < blocks; ++b) {
      UnpackedOf<Format> u;
      Format::unpack(packed + (r * blocks + b) * kBytes, u);
      if constexpr (Format::kTable != nullptr) V::lookup(Format::kTable, u.codes, kBlock);
      for (int k = 0; k < kBlock; k += 4) {
        uint32_t four;
        memcpy(&four, u.codes + k, 4);
        // Bytes plus 64, without a carry between them: codes lie in -64 .. 63.
        four = (four & 0x7f7f7f7fu) ^ 0x40404040u;
        memcpy(tile.codes[(b * kBlock + k) / 4][r], &four, 4);
      }
      for (int g = 0; g < kGroups; ++g) tile.scale[b * kGroups + g][r] = u.scale[g];
      if constexpr (Format::kHasMin) {
        for (int g = 0; g < kGroups; ++g) tile.neg_min[b * kGroups + g][r] = -u.min[g];
      }
    }
  }
}

// `blocks` blocks of sixteen rows, packed.
template <class V, class Format>
void expand_chunk(const uint8_t* packed, int blocks, RowTile& tile) noexcept {
  if constexpr (ExpandsInVectors<Format>) {
    constexpr int kCodes = plane_bytes<CodePlanes<Format>>(), kScales = plane_bytes<ScalePlanes<Format>>();
    constexpr int kBlock = Format::kInfo.block, kGroups = kBlock / Format::kInfo.group;
    const uint8_t *codes = packed, *scales = packed + int64_t(blocks) * kTileRows * kCodes;
    for (int b = 0; b < blocks; ++b) {
      for (int lane = 0; lane < kTileRows; lane += V::kLanes) {
        Format::template expand<V>(
            PackedBlock<V>{codes + b * kCodes * kTileRows, scales + b * kScales * kTileRows, lane},
            TileBlock<V>{tile.codes[b * kBlock / 4][lane], &tile.scale[b * kGroups][lane],
                         &tile.neg_min[b * kGroups][lane]});
      }
    }
  } else {
    expand_unpacked<V, Format>(packed, blocks, tile);
  }
}

// Decoded weights, out[column][row]: scale * code, and the minimum taken off, each rounded.
template <class V, class Format>
void expand_floats(const uint8_t* packed, int blocks, RowTile& tile, float* out) noexcept {
  constexpr int kLanes = V::kLanes;
  if constexpr (Format::kInfo.block == 1) {
    // Words of four bytes hold one or two columns.
    constexpr int kColumns = 4 / Format::kInfo.block_bytes;
    const uint8_t* rows[kTileRows];
    for (int r = 0; r < kTileRows; ++r) rows[r] = packed + int64_t(r) * blocks * Format::kInfo.block_bytes;
    for (int k = 0; k < blocks; k += kColumns) {
      for (int r = 0; r < kTileRows; ++r) {
        for (int c = 0; c < kColumns && k + c < blocks; ++c) {
          const uint8_t* p = rows[r] + (k + c) * Format::kInfo.block_bytes;
          float& w = out[(k + c) * kTileRows + r];
          if constexpr (kColumns == 1) {
            memcpy(&w, p, 4);
          } else if constexpr (Format::kInfo.ggml_type == F16::kInfo.ggml_type) {
            w = f16_to_f32(load_u16(p));
          } else {
            w = bf16_to_f32(load_u16(p));
          }
        }
      }
    }
  } else {
    expand_chunk<V, Format>(packed, blocks, tile);
    constexpr int kGroup = Format::kInfo.group;
    constexpr bool kSigned = code_max<Format>() == 255 && V::kWideOffset == 0;
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
