#include "matmul/tiles.h"

#include <algorithm>
#include <cstring>

namespace kvant {
namespace {

constexpr Ahead kNothing = {};

// What is multiplied next, asked for little by little.
struct NextChunk {
  const uint8_t* from[kMostTiles] = {};
  int32_t places = 0, lines = 0;

  // What comes after chunk c of `tiles` tiles.
  NextChunk(const Weights& w, int64_t first, int tiles, int64_t c) {
    if (!w.packed) return;
    if (++c >= w.chunks()) {
      c = 0;
      first += tiles;
    }
    for (; places < tiles && first + places < w.tiles(); ++places) {
      from[places] = w.data + (first + places) * w.tile_bytes + kTileRows * w.chunk_offset(c);
    }
    lines = int(kTileRows * w.chunk_blocks(c) * w.block_bytes / 64);
  }
  // The lines from `begin` on, for so many panels of so many steps.
  Ahead share(int begin, int panels, int steps) const {
    Ahead ahead = {{}, places, 0, 0};
    if (places == 0) return ahead;
    for (int p = 0; p < places; ++p) ahead.from[p] = from[p] + 64 * begin;
    const int left = lines - begin, turns = std::max(panels / places, 1), step_turns = std::max(panels * steps / places, 1);
    if (left < step_turns) ahead.panel_lines = (left + turns - 1) / turns;
    else ahead.step_lines = (left + step_turns - 1) / step_turns;
    return ahead;
  }
};

// How the columns of a group go through the inner loops: whole panels, and one that is narrower.
struct Shares {
  int whole, rest;
  float* rest_sums;

  Shares(const Panels& x, int tiles, float* sums)
      : whole(int(x.rows / x.width)), rest(int(x.rows % x.width)),
        rest_sums(sums + int64_t(whole) * x.width * tiles * kTileRows) {}
  int panels() const { return whole + (rest > 0); }
};

// A few tiles: sums [column][tile][16].
void multiply_some(const MatmulKernels& k, const Weights& w, const Panels& x, int64_t first, int tiles,
                   const TaskMemory& memory) {
  const FormatProducts& format = k.format[w.format];
  const Shares shares(x, tiles, memory.sums);
  for (int64_t c = 0; c < w.chunks(); ++c) {
    const int blocks = w.chunk_blocks(c), steps = blocks * w.block / 32;
    const NextChunk next(w, first, tiles, c);
    // Expanding takes its share of the time, and so of what is to be asked for.
    const int early = int(next.lines * kExpandColumns / (kExpandColumns + x.rows)) / blocks * blocks;
    bool steady = format.multiply_steady[0][0] != nullptr;
    for (int t = 0; t < tiles; ++t) {
      format.expand(packed_chunk(k, w, first + t, c, memory.packed), blocks, memory.tiles[t],
                    {{next.from[t]}, 1, t < next.places ? early / blocks : 0, 0});
      steady = steady && memory.tiles[t].steady;
    }
    const MultiplyKernel* multiply = (steady ? format.multiply_steady : format.multiply)[tiles - 1];
    const Ahead ahead = next.share(early, shares.panels(), steps);
    if (shares.whole) {
      multiply[x.width - 1](memory.tiles, x.at(c, 0), steps, shares.whole, c == 0, memory.sums, ahead);
    }
    if (shares.rest) {
      multiply[shares.rest - 1](memory.tiles, x.at(c, x.rows - shares.rest), steps, 1, c == 0, shares.rest_sums,
                                shares.whole ? kNothing : ahead);
    }
  }
}

// The same with decoded weights and activations as they are.
void multiply_decoded(const MatmulKernels& k, const Weights& w, const Panels& x, int64_t first, int tiles,
                      const TaskMemory& memory) {
  const Shares shares(x, tiles, memory.sums);
  const MultiplyFloats* multiply = k.floats[tiles - 1];
  for (int64_t c = 0; c < w.chunks(); ++c) {
    const int blocks = w.chunk_blocks(c), columns = blocks * w.block;
    for (int t = 0; t < tiles; ++t) {
      k.format[w.format].floats(packed_chunk(k, w, first + t, c, memory.packed), blocks, memory.tiles[t],
                                memory.floats + t * kChunk * kTileRows);
    }
    const auto floats = [&](int64_t j) { return reinterpret_cast<const float*>(x.at(c, j)); };
    if (shares.whole) multiply[x.width - 1](memory.floats, floats(0), columns, shares.whole, c == 0, memory.sums);
    if (shares.rest) {
      multiply[shares.rest - 1](memory.floats, floats(x.rows - shares.rest), columns, 1, c == 0, shares.rest_sums);
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

void store(const MatmulKernels& k, const Weights& w, const Target& target, int64_t columns, int64_t first, int tiles,
           const float* sums) {
  const int64_t row = kTileRows * first, count = std::min<int64_t>(w.rows - row, kTileRows * tiles);
  for (int64_t c = 0; c < columns; ++c) {
    k.finish(sums + c * tiles * kTileRows, count,
             target.y + (target.rows ? target.rows[c] : c) * target.stride + (row - target.first));
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
  const Panels x(product, panels, group);
  // Floats meet weights of blocks only once these are decoded.
  const bool streams = k.format[w.format].stream && (!product.floats || w.block == 1);
  if (x.rows == 1 && streams) {
    for (int64_t t = begin; t < end; ++t) {
      stream_tile(k, w, x, t, memory);
      store(k, w, target, 1, t, 1, memory.sums);
    }
    return;
  }
  for (int64_t t = begin; t < end; t += k.tiles) {
    const int tiles = int(std::min<int64_t>(end - t, k.tiles));
    if (w.chunks() == 0) memset(memory.sums, 0, size_t(x.rows * tiles) * kTileRows * sizeof(float));
    (product.floats ? multiply_decoded : multiply_some)(k, w, x, t, tiles, memory);
    store(k, w, target, x.rows, t, tiles, memory.sums);
  }
}

}  // namespace kvant
