#include "matmul/tiles.h"

#include <algorithm>
#include <cstring>

namespace kvant {
namespace {

// Asks for the packed chunks that come next, a share of them with every panel of this one.
class Ahead {
 public:
  Ahead(const Weights& w, int64_t first, int tiles, int64_t c, int64_t steps) : tiles_(0) {
    if (!w.packed) return;
    if (c >= w.chunks()) {
      c = 0;
      first += tiles;
    }
    for (; tiles_ < tiles && first + tiles_ < w.tiles(); ++tiles_) {
      from_[tiles_] = w.data + (first + tiles_) * w.tile_bytes() + 16 * w.chunk_offset(c);
    }
    bytes_ = 16 * (int64_t(w.chunk_blocks(c)) * w.info().block_bytes);
    share_ = (bytes_ / 64 + steps - 1) / steps * 64;
  }

  void step() {
    for (int t = 0; t < tiles_; ++t) {
      for (int64_t i = at_; i < at_ + share_ && i < bytes_; i += 64) __builtin_prefetch(from_[t] + i);
    }
    at_ += share_;
  }

 private:
  const uint8_t* from_[kMostTiles];
  int tiles_;
  int64_t bytes_ = 0, share_ = 0, at_ = 0;
};

// A few tiles: sums [column][tile][16].
void multiply_some(const MatmulKernels& k, const Product& product, const Weights& w, const Panels& x, int64_t first,
                   int tiles, const TaskMemory& memory) {
  const FormatProducts& format = k.format[w.format];
  memset(memory.sums, 0, size_t(x.rows) * size_t(tiles) * 64);
  for (int64_t c = 0; c < w.chunks(); ++c) {
    const int blocks = w.chunk_blocks(c), columns = blocks * w.info().block;
    for (int t = 0; t < tiles; ++t) {
      const uint8_t* packed = packed_chunk(k, w, first + t, c, memory.packed);
      if (product.floats) {
        format.floats(packed, blocks, memory.tiles[t], memory.floats + t * kChunk * kTileRows);
      } else {
        format.expand(packed, blocks, memory.tiles[t]);
      }
    }
    Ahead ahead(w, first, tiles, c + 1, (x.rows + x.width - 1) / x.width);
    for (int64_t j = 0; j < x.rows; j += x.width) {
      ahead.step();
      const int width = int(std::min<int64_t>(x.rows - j, x.width));
      float* sums = memory.sums + j * tiles * kTileRows;
      if (product.floats) {
        k.floats[tiles - 1][width - 1](memory.floats, reinterpret_cast<const float*>(x.at(c, j)), columns, sums);
      } else {
        format.multiply[tiles - 1][width - 1](memory.tiles, x.at(c, j), columns / 32, sums);
      }
    }
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
  for (int64_t t = begin; t < end; t += k.tiles) {
    const int tiles = int(std::min<int64_t>(end - t, k.tiles));
    multiply_some(k, product, w, x, t, tiles, memory);
    store(w, target, x.rows, t, tiles, memory.sums);
  }
}

}  // namespace kvant
