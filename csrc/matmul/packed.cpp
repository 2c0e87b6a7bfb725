#include "matmul/packed.h"

#include "runtime/pool.h"

namespace kvant {
namespace {

// What rows past the last one are packed from: as long as the longest chunk of a row.
alignas(64) constexpr uint8_t kZeros[1024] = {};

void pack_chunk(const MatmulKernels& k, const Weights& w, int64_t t, int64_t c, uint8_t* out) {
  const int64_t row_bytes = w.row_bytes, at = w.chunk_offset(c);
  // What is packed next is asked for: sixteen rows at once are more than processors follow by themselves.
  const int64_t next = c + 1 < w.chunks() ? w.chunk_bytes : 16 * row_bytes - at;
  const uint8_t* rows[16];
  for (int r = 0; r < 16; ++r) {
    const int64_t row = 16 * t + r;
    if (row >= w.rows) {
      rows[r] = kZeros;
      continue;
    }
    rows[r] = w.data + row * row_bytes + at;
    for (int64_t i = 0; i < w.chunk_bytes; i += 64) __builtin_prefetch(rows[r] + next + i);
  }
  k.format[w.format].pack(rows, w.chunk_blocks(c), out);
}

}  // namespace

const uint8_t* packed_chunk(const MatmulKernels& k, const Weights& w, int64_t t, int64_t c, uint8_t* scratch) {
  if (w.packed) return w.data + t * w.tile_bytes + 16 * w.chunk_offset(c);
  pack_chunk(k, w, t, c, scratch);
  return scratch;
}

Status pack(const Weights& w, uint8_t* out, int limit) {
  const Kernels* k;
  if (const Status s = current_kernels(k); !s.ok()) return s;
  parallel_for(w.tiles(), limit, [&](int64_t t) {
    for (int64_t c = 0; c < w.chunks(); ++c) {
      pack_chunk(*k->matmul, w, t, c, out + t * w.tile_bytes + 16 * w.chunk_offset(c));
    }
  });
  return {};
}

Status unpack(const Weights& w, uint8_t* out, int limit) {
  const Kernels* k;
  if (const Status s = current_kernels(k); !s.ok()) return s;
  parallel_for(w.tiles(), limit, [&](int64_t t) {
    const int64_t row_bytes = w.row_bytes;
    uint8_t beyond[1024];
    for (int64_t c = 0; c < w.chunks(); ++c) {
      uint8_t* rows[16];
      for (int r = 0; r < 16; ++r) {
        const int64_t row = 16 * t + r;
        rows[r] = row < w.rows ? out + row * row_bytes + w.chunk_offset(c) : beyond;
      }
      k->matmul->format[w.format].unpack(packed_chunk(*k->matmul, w, t, c, nullptr), w.chunk_blocks(c), rows);
    }
  });
  return {};
}

}  // namespace kvant
