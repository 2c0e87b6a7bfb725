// Packing: from sixteen rows of a file to a chunk of a packed tile (formats/tile.h) and back.
#pragma once

#include "formats/tile.h"
#include "kernels/kernels.h"

namespace kvant {

template <class Format>
concept ExpandsInVectors = requires { Format::kCodePlanes; };

// Columns of a chunk of `blocks` blocks follow each other; a float format counts columns as blocks.
template <class Format>
constexpr int kChunkBlocks = kChunk / Format::kInfo.block;

// use(plane, bytes of the planes before it), unrolled: what depends on the plane is known when compiled.
template <const auto& kPlanes, int i = 0, int at = 0, class Use>
KVANT_INLINE void each_plane(Use&& use) {
  if constexpr (i < int(sizeof kPlanes / sizeof kPlanes[0])) {
    constexpr Plane kPlane = kPlanes[i];
    use(kPlane, at);
    each_plane<kPlanes, i + 1, at + kPlane.bytes>(use);
  }
}

// Bytes of one block in planes.
constexpr int plane_bytes(const auto& planes) {
  int bytes = 0;
  for (const Plane& plane : planes) bytes += plane.bytes;
  return bytes;
}

// One plane of a block of sixteen rows: out[word][row] = row(r)[word].
template <class V, class Row>
KVANT_INLINE void pack_plane(Row&& row, const Plane& plane, uint8_t* out) {
  int w = 0;
  if (plane.word == 4) {
    for (; 4 * (w + 4) <= plane.bytes; w += 4) {
      V::transpose_words([&](int r) KVANT_LAMBDA { return row(r) + plane.offset + 4 * w; }, out + 64 * w);
    }
  }
  for (; plane.word * w < plane.bytes; ++w) {
    for (int r = 0; r < kTileRows; ++r) {
      memcpy(out + (kTileRows * w + r) * plane.word, row(r) + plane.offset + plane.word * w, plane.word);
    }
  }
}

KVANT_INLINE void unpack_plane(const uint8_t* packed, const Plane& plane, int row, uint8_t* block) {
  for (int w = 0; plane.word * w < plane.bytes; ++w) {
    memcpy(block + plane.offset + plane.word * w, packed + (kTileRows * w + row) * plane.word, plane.word);
  }
}

// rows[r]: the first of `blocks` blocks of row r.
template <class V, class Format>
void pack_chunk(const uint8_t* const* rows, int blocks, uint8_t* out) noexcept {
  constexpr int kBytes = Format::kInfo.block_bytes;
  if constexpr (ExpandsInVectors<Format>) {
    constexpr int kCodes = plane_bytes(Format::kCodePlanes), kScales = plane_bytes(Format::kScalePlanes);
    static_assert(kCodes + kScales == kBytes);
    uint8_t *codes = out, *scales = out + int64_t(blocks) * kTileRows * kCodes;
    for (int b = 0; b < blocks; ++b) {
      const auto row = [&](int r) KVANT_LAMBDA { return rows[r] + b * kBytes; };
      each_plane<Format::kCodePlanes>([&](const Plane& plane, int at) KVANT_LAMBDA {
        pack_plane<V>(row, plane, codes + (b * kCodes + at) * kTileRows);
      });
      each_plane<Format::kScalePlanes>([&](const Plane& plane, int at) KVANT_LAMBDA {
        pack_plane<V>(row, plane, scales + (b * kScales + at) * kTileRows);
      });
    }
  } else {
    for (int r = 0; r < kTileRows; ++r) memcpy(out + r * blocks * kBytes, rows[r], size_t(blocks) * kBytes);
  }
}

template <class V, class Format>
void unpack_chunk(const uint8_t* packed, int blocks, uint8_t* const* rows) noexcept {
  constexpr int kBytes = Format::kInfo.block_bytes;
  if constexpr (ExpandsInVectors<Format>) {
    constexpr int kCodes = plane_bytes(Format::kCodePlanes), kScales = plane_bytes(Format::kScalePlanes);
    const uint8_t *codes = packed, *scales = packed + int64_t(blocks) * kTileRows * kCodes;
    for (int r = 0; r < kTileRows; ++r) {
      for (int b = 0; b < blocks; ++b) {
        uint8_t* block = rows[r] + b * kBytes;
        each_plane<Format::kCodePlanes>([&](const Plane& plane, int at) KVANT_LAMBDA {
          unpack_plane(codes + (b * kCodes + at) * kTileRows, plane, r, block);
        });
        each_plane<Format::kScalePlanes>([&](const Plane& plane, int at) KVANT_LAMBDA {
          unpack_plane(scales + (b * kScales + at) * kTileRows, plane, r, block);
        });
      }
    }
  } else {
    for (int r = 0; r < kTileRows; ++r) memcpy(rows[r], packed + r * blocks * kBytes, size_t(blocks) * kBytes);
  }
}

}  // namespace kvant
