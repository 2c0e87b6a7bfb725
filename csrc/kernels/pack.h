// Packing: from sixteen rows of a file to a chunk of a packed tile (formats/tile.h) and back.
#pragma once

#include "formats/tile.h"
#include "kernels/kernels.h"

namespace kvant {

// Columns of a chunk of `blocks` blocks follow each other; a float format counts columns as blocks.
template <class Format>
constexpr int kChunkBlocks = kChunk / Format::kInfo.block;

// The planes of the codes and those of the scales. Plane i is taken as a constant: a reference to the
// table would be a symbol that ISAs share.
template <class Format>
struct CodePlanes {
  static constexpr int count() { return int(sizeof Format::kCodePlanes / sizeof(Plane)); }
  static constexpr Plane plane(int i) { return Format::kCodePlanes[i]; }
};
template <class Format>
struct ScalePlanes {
  static constexpr int count() { return int(sizeof Format::kScalePlanes / sizeof(Plane)); }
  static constexpr Plane plane(int i) { return Format::kScalePlanes[i]; }
};

// Bytes of one block in the first `count` planes.
template <class Planes>
constexpr int plane_bytes(int count = Planes::count()) {
  int bytes = 0;
  for (int i = 0; i < count; ++i) bytes += Planes::plane(i).bytes;
  return bytes;
}

// use(plane, bytes before it)
template <class Planes, int i = 0, class Use>
KVANT_INLINE void each_plane(Use&& use) {
  if constexpr (i < Planes::count()) {
    constexpr Plane plane = Planes::plane(i);
    constexpr int at = plane_bytes<Planes>(i);
    use(plane, at);
    each_plane<Planes, i + 1>(use);
  }
}

// One plane of a block of sixteen rows: out[word][row] = row(r)[word].
template <class V, class Row>
KVANT_INLINE void pack_plane(Row&& row, Plane plane, uint8_t* out) {
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

KVANT_INLINE void unpack_plane(const uint8_t* packed, Plane plane, int row, uint8_t* block) {
  for (int w = 0; plane.word * w < plane.bytes; ++w) {
    memcpy(block + plane.offset + plane.word * w, packed + (kTileRows * w + row) * plane.word, plane.word);
  }
}

// rows[r]: the first of `blocks` blocks of row r.
template <class V, class Format>
void pack_chunk(const uint8_t* const* rows, int blocks, uint8_t* out) noexcept {
  constexpr int kBytes = Format::kInfo.block_bytes;
  if constexpr (Format::kInfo.block > 1) {
    constexpr int kCodes = plane_bytes<CodePlanes<Format>>(), kScales = plane_bytes<ScalePlanes<Format>>();
    static_assert(kCodes + kScales == kBytes);
    uint8_t *codes = out, *scales = out + int64_t(blocks) * kTileRows * kCodes;
    for (int b = 0; b < blocks; ++b) {
      const auto row = [&](int r) KVANT_LAMBDA { return rows[r] + b * kBytes; };
      each_plane<CodePlanes<Format>>([&](Plane plane, int at) KVANT_LAMBDA {
        pack_plane<V>(row, plane, codes + (b * kCodes + at) * kTileRows);
      });
      each_plane<ScalePlanes<Format>>([&](Plane plane, int at) KVANT_LAMBDA {
        pack_plane<V>(row, plane, scales + (b * kScales + at) * kTileRows);
      });
    }
  } else {
    // Floats: words of four bytes, and a last half where their number is odd.
    const Plane words = {0, blocks * kBytes / 4 * 4, 4}, rest = {words.bytes, blocks * kBytes % 4, 2};
    const auto row = [&](int r) KVANT_LAMBDA { return rows[r]; };
    pack_plane<V>(row, words, out);
    pack_plane<V>(row, rest, out + kTileRows * words.bytes);
  }
}

template <class V, class Format>
void unpack_chunk(const uint8_t* packed, int blocks, uint8_t* const* rows) noexcept {
  constexpr int kBytes = Format::kInfo.block_bytes;
  if constexpr (Format::kInfo.block > 1) {
    constexpr int kCodes = plane_bytes<CodePlanes<Format>>(), kScales = plane_bytes<ScalePlanes<Format>>();
    const uint8_t *codes = packed, *scales = packed + int64_t(blocks) * kTileRows * kCodes;
    for (int r = 0; r < kTileRows; ++r) {
      for (int b = 0; b < blocks; ++b) {
        uint8_t* block = rows[r] + b * kBytes;
        each_plane<CodePlanes<Format>>([&](Plane plane, int at) KVANT_LAMBDA {
          unpack_plane(codes + (b * kCodes + at) * kTileRows, plane, r, block);
        });
        each_plane<ScalePlanes<Format>>([&](Plane plane, int at) KVANT_LAMBDA {
          unpack_plane(scales + (b * kScales + at) * kTileRows, plane, r, block);
        });
      }
    }
  } else {
    const Plane words = {0, blocks * kBytes / 4 * 4, 4}, rest = {words.bytes, blocks * kBytes % 4, 2};
    for (int r = 0; r < kTileRows; ++r) {
      unpack_plane(packed, words, r, rows[r]);
      unpack_plane(packed + kTileRows * words.bytes, rest, r, rows[r]);
    }
  }
}

}  // namespace kvant
