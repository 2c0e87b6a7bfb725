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
  // Bytes of a row, of a packed tile (up to a multiple of 64), and of a row in one whole chunk.
  int64_t row_bytes, tile_bytes, chunk_bytes;
  int32_t block, block_bytes;

  Weights() = default;
  Weights(const uint8_t* data_, int32_t format_, int64_t rows_, int64_t cols_, bool packed_)
      : data(data_), format(format_), rows(rows_), cols(cols_), packed(packed_) {
    // A format that there is not is refused elsewhere.
    const FormatInfo& info = kFormats.row[format >= 0 && format < kFormatCount ? format : 0];
    block = info.block;
    block_bytes = info.block_bytes;
    row_bytes = cols / block * block_bytes;
    tile_bytes = (16 * row_bytes + 63) / 64 * 64;
    chunk_bytes = 256 / block * block_bytes;
  }

  int64_t tiles() const { return (rows + 15) / 16; }
  int64_t packed_bytes() const { return tiles() * tile_bytes; }
  int64_t chunks() const { return (cols + 255) / 256; }
  // Columns and blocks of chunk c, and where it begins in a row of the file.
  int chunk_cols(int64_t c) const { return int(cols - 256 * c < 256 ? cols - 256 * c : 256); }
  int chunk_blocks(int64_t c) const { return chunk_cols(c) / block; }
  int64_t chunk_offset(int64_t c) const { return c * chunk_bytes; }
};

// w.data: rows of the file, from one to the next w.row_bytes; out: w.packed_bytes(), aligned to 64.
Status pack(const Weights& w, uint8_t* out, int limit);
// Back to the bytes of the file. w.data is packed.
Status unpack(const Weights& w, uint8_t* out, int limit);

// Chunk c of tile t, packed: where it lies, or packed into scratch (kPackedChunkBytes).
constexpr int kPackedChunkBytes = 16 * 1024;
const uint8_t* packed_chunk(const MatmulKernels& k, const Weights& w, int64_t t, int64_t c, uint8_t* scratch);

}  // namespace kvant
