// Weights of a product: rows as they lie in a file, or packed in tiles of sixteen rows.
#pragma once

#include "base/status.h"
#include "isa/select.h"

namespace kvant {

struct Weights {
  const uint8_t* data;
  int32_t format;
  int64_t rows, cols;
  bool packed;

  const FormatInfo& info() const { return kFormats.row[format]; }
  int64_t row_bytes() const { return cols / info().block * info().block_bytes; }
  int64_t tiles() const { return (rows + 15) / 16; }
  // Of a packed tile: sixteen rows, up to a multiple of 64.
  int64_t tile_bytes() const { return (16 * row_bytes() + 63) / 64 * 64; }
  int64_t packed_bytes() const { return tiles() * tile_bytes(); }
  int64_t chunks() const { return (cols + 255) / 256; }
  // Blocks of chunk c, and where it begins in a row of the file.
  int chunk_blocks(int64_t c) const {
    const int64_t left = cols - 256 * c;
    return int((left < 256 ? left : 256) / info().block);
  }
  int64_t chunk_offset(int64_t c) const { return 256 * c / info().block * info().block_bytes; }
};

// w.data: rows of the file, from one to the next w.row_bytes(); out: w.packed_bytes(), aligned to 64.
Status pack(const Weights& w, uint8_t* out, int limit);
// Back to the bytes of the file. w.data is packed.
Status unpack(const Weights& w, uint8_t* out, int limit);

// Chunk c of tile t, packed: where it lies, or packed into scratch (kPackedChunkBytes).
constexpr int kPackedChunkBytes = 16 * 1024;
const uint8_t* packed_chunk(const MatmulKernels& k, const Weights& w, int64_t t, int64_t c, uint8_t* scratch);

}  // namespace kvant
