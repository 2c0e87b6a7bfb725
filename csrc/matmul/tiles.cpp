#include "matmul/tiles.h"

#include <algorithm>
#include <cstring>

namespace kvant {
namespace {

// The packed chunks that come after chunk c of `tiles` tiles, handed out in shares.
class Next {
 public:
  Next(const Weights& w, int64_t first, int tiles, int64_t c, int64_t shares) : all_{} {
    if (!w.packed) return;
    if (++c >= w.chunks()) {
      c = 0;
      first += tiles;
    }
    for (; all_.places < tiles && first + all_.places < w.tiles(); ++all_.places) {
      all_.from[all_.places] = w.data + (first + all_.places) * w.tile_bytes + kTileRows * w.chunk_offset(c);
    }
    left_ = kTileRows * w.chunk_blocks(c) * w.block_bytes / 64;
    share_ = int((left_ + shares - 1) / shares);
  }

  Ahead share() {
    Ahead part = all_;
    part.lines = std::min(share_, left_);
    for (int p = 0; p < all_.places; ++p) all_.from[p] += 64 * part.lines;
    left_ -= part.lines;
    return part;
  }

 private:
  Ahead all_;
  int left_ = 0, share_ = 0;
};

// A few tiles: sums [column][tile][16].
void multiply_some(const MatmulKernels& k, const Product& product, const Weights& w, const Panels& x, int64_t first,
                   int tiles, const TaskMemory& memory) {
  const FormatProducts& format = k.format[w.format];
  memset(memory.sums, 0, size_t(x.rows) * size_t(tiles) * 64);
  for (int64_t c = 0; c < w.chunks(); ++c) {
    const int blocks = w.chunk_blocks(c), columns = blocks * w.block;
    // A few columns read memory as fast as it goes: then expanding asks for a half of what is next.
    const bool stream = x.rows <= kStreamColumns;
    Next next(w, first, tiles, c, stream ? 2 : (x.rows + x.width - 1) / x.width);
    const Ahead half = stream ? next.share() : Ahead{};
    for (int t = 0; t < tiles; ++t) {
      const uint8_t* packed = packed_chunk(k, w, first + t, c, memory.packed);
      if (product.floats) {
        format.floats(packed, blocks, memory.tiles[t], memory.floats + t * kChunk * kTileRows);
      } else {
        format.expand(packed, blocks, memory.tiles[t], Ahead{{half.from[t]}, t < half.places, half.lines});
      }
    }
    for (int64_t j = 0; j < x.rows; j += x.width) {
      const int width = int(std::min<int64_t>(x.rows - j, x.width));
      float* sums = memory.sums + j * tiles * kTileRows;
      if (product.floats) {
        k.floats[tiles - 1][width - 1](memory.floats, reinterpret_cast<const float*>(x.at(c, j)), columns, sums);
      } else {
        format.multiply[tiles - 1][width - 1](memory.tiles, x.at(c, j), columns / 32, sums, next.share());
      }
    }
  }
}

// One tile times one column: memory is read once, from end to end.
void stream_tile(const MatmulKernels& k, const Weights& w, const Panels& x, int64_t t, const TaskMemory& memory) {
  memset(memory.sums, 0, 64);
  for (int64_t c = 0; c < w.chunks(); ++c) {
    k.format[w.format].stream(packed_chunk(k, w, t, c, memory.packed), w.chunk_blocks(c), x.at(c, 0), memory.sums);
  }
}

// A NaN becomes the canonical one, because processors differ.
void store(const Weights& w, const Target& target, int64_t columns, int64_t first, int tiles, const float* sums) {
  const int64_t row = kTileRows * first, count = std::min<int64_t>(w.rows - row, kTileRows * tiles);
  for (int64_t c = 0; c < columns; ++c) {
    float* y = target.y + (target.rows ? target.rows[c] : c) * target.stride + (row - target.first);
    const float* s = sums + c * tiles * kTileRows;
    for (int64_t i = 0; i < count; ++i) {
      uint32_t bits;
      memcpy(&bits, s + i, 4);
      bits = (bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc00000u : bits;
      memcpy(y + i, &bits, 4);
    }
  }
}

}  // namespace

TaskMemory TaskMemory::get(const MatmulKernels& k, bool floats, int64_t columns, int64_t extra) {
  TaskMemory memory;
  const auto place = [&](Carver& carver) {
    memory.tiles = carver.take<RowTile>(k.tiles);
    memory.packed = carver.take<uint8_t>(kPackedChunkBytes);
    memory.floats = carver.take<float>(floats ? int64_t(k.tiles) * kChunk * kTileRows : 0);
    memory.sums = carver.take<float>(columns * k.tiles * kTileRows);
    memory.extra = carver.take<float>(extra);
  };
  Carver needed;
  place(needed);
  void* base = thread_scratch(needed.bytes());
  if (!base) return {};
  Carver carver(base);
  place(carver);
  return memory;
}

void multiply_tiles(const MatmulKernels& k, const Product& product, const uint8_t* panels, const Group& group,
                    int64_t begin, int64_t end, const Target& target, const TaskMemory& memory) {
  const Weights w = product.matrix(group.matrix);
  const Panels x(k, product, panels, group);
  if (x.rows == 1 && !product.floats && k.format[w.format].stream) {
    for (int64_t t = begin; t < end; ++t) {
      stream_tile(k, w, x, t, memory);
      store(w, target, 1, t, 1, memory.sums);
    }
    return;
  }
  for (int64_t t = begin; t < end; t += k.tiles) {
    const int tiles = int(std::min<int64_t>(end - t, k.tiles));
    multiply_some(k, product, w, x, t, tiles, memory);
    store(w, target, x.rows, t, tiles, memory.sums);
  }
}

}  // namespace kvant
