#include "matmul/matmul.h"

#include <atomic>
#include <cstring>

#include "matmul/panels.h"
#include "runtime/buffer.h"
#include "runtime/pool.h"

namespace kvant {
namespace {

// Products smaller than this many multiplications run in the caller.
constexpr int64_t kParallelProducts = 128 * 1024;
// Up to so many rows of x a product is bound by memory, and a task takes several runs of tiles.
constexpr int64_t kStreamRows = 4, kStreamRuns = 2;

size_t round_up(size_t bytes) { return (bytes + 63) / 64 * 64; }

// What a task needs: tiles, one packed chunk, floats of the tiles, and sums of a group.
struct TaskMemory {
  RowTile* tiles;
  uint8_t* packed;
  float *floats, *sums;

  static TaskMemory get(const MatmulKernels& k, bool floats, int64_t columns) {
    const size_t tile = sizeof(RowTile) * size_t(k.tiles);
    const size_t decoded = floats ? size_t(k.tiles) * 256 * 16 * 4 : 0;
    const size_t sums = size_t(columns) * size_t(k.tiles) * 16 * 4;
    auto* p = static_cast<uint8_t*>(thread_scratch(tile + kPackedChunkBytes + decoded + sums));
    if (!p) return {};
    return {reinterpret_cast<RowTile*>(p), p + tile, reinterpret_cast<float*>(p + tile + kPackedChunkBytes),
            reinterpret_cast<float*>(p + tile + kPackedChunkBytes + decoded)};
  }
};

// One weight matrix with the activations arranged for it, and its share of the tasks.
struct Plan {
  ProductOutput product;
  const uint8_t* panels;
  bool floats;
  int unit;
  int64_t rows, groups, tiles_per_task, row_tasks;

  int64_t tasks() const { return groups * row_tasks; }
};

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
      all_.from[all_.places] = w.data + (first + all_.places) * w.tile_bytes() + 16 * w.chunk_offset(c);
    }
    left_ = int(16 * int64_t(w.chunk_blocks(c)) * w.info().block_bytes / 64);
    share_ = int((left_ + shares - 1) / shares);
  }

  Ahead share() {
    Ahead part = all_;
    part.lines = share_ < left_ ? share_ : left_;
    for (int p = 0; p < all_.places; ++p) all_.from[p] += 64 * part.lines;
    left_ -= part.lines;
    return part;
  }

 private:
  Ahead all_;
  int left_ = 0, share_ = 0;
};

void multiply_tiles(const MatmulKernels& k, const Plan& plan, const Panels& x, int64_t first, int tiles,
                    const TaskMemory& memory) {
  const Weights& w = plan.product.weights;
  const FormatProducts& format = k.format[w.format];
  memset(memory.sums, 0, size_t(x.rows) * size_t(tiles) * 64);
  for (int64_t c = 0; c < w.chunks(); ++c) {
    const int blocks = w.chunk_blocks(c), columns = blocks * w.info().block;
    // A few rows of x read memory as fast as it goes: then expanding asks for a half of what is next.
    const bool stream = x.rows <= kStreamRows;
    Next next(w, first, tiles, c, stream ? 2 : (x.rows + x.width - 1) / x.width);
    const Ahead half = stream ? next.share() : Ahead{};
    for (int t = 0; t < tiles; ++t) {
      const uint8_t* packed = packed_chunk(k, w, first + t, c, memory.packed);
      if (plan.floats) {
        format.floats(packed, blocks, memory.tiles[t], memory.floats + t * 256 * 16);
      } else {
        Ahead own = {{half.from[t]}, t < half.places, half.lines};
        format.expand(packed, blocks, memory.tiles[t], own);
      }
    }
    for (int64_t j = 0; j < x.rows; j += x.width) {
      const int width = int(x.rows - j < x.width ? x.rows - j : x.width);
      float* sums = memory.sums + j * tiles * 16;
      if (plan.floats) {
        k.floats[tiles - 1][width - 1](memory.floats, reinterpret_cast<const float*>(x.at(c, j)), columns, sums);
      } else {
        format.multiply[tiles - 1][width - 1](memory.tiles, x.at(c, j), columns / 32, sums, next.share());
      }
    }
  }
}

// Sums [column][tile][16] to rows of y; a NaN becomes the canonical one, because processors differ.
void store(const Plan& plan, int64_t x_row, int64_t columns, int64_t first, int tiles, const float* sums) {
  const Weights& w = plan.product.weights;
  const int64_t row = 16 * first, count = w.rows - row < 16 * tiles ? w.rows - row : 16 * tiles;
  for (int64_t c = 0; c < columns; ++c) {
    float* y = plan.product.y + (x_row + c) * plan.product.row_stride + row;
    const float* s = sums + c * tiles * 16;
    for (int64_t i = 0; i < count; ++i) {
      uint32_t bits;
      memcpy(&bits, s + i, 4);
      bits = (bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc00000u : bits;
      memcpy(y + i, &bits, 4);
    }
  }
}

bool run_task(const MatmulKernels& k, const Plan& plan, int64_t task) {
  const Weights& w = plan.product.weights;
  const int64_t group = task / plan.row_tasks;
  const Panels x = panels(k, plan.panels, plan.rows, w.cols, plan.unit, group);
  const TaskMemory memory = TaskMemory::get(k, plan.floats, x.rows);
  if (!memory.tiles) return false;
  const int64_t begin = task % plan.row_tasks * plan.tiles_per_task;
  const int64_t end = begin + plan.tiles_per_task < w.tiles() ? begin + plan.tiles_per_task : w.tiles();
  for (int64_t t = begin; t < end; t += k.tiles) {
    const int tiles = int(end - t < k.tiles ? end - t : k.tiles);
    multiply_tiles(k, plan, x, t, tiles, memory);
    store(plan, group * group_rows(w.cols, plan.unit, k.columns), x.rows, t, tiles, memory.sums);
  }
  return true;
}

}  // namespace

Status matmul(const ProductInput& in, const ProductOutput* products, int count, Inputs inputs, int limit) {
  const Kernels* kernels;
  if (const Status s = current_kernels(kernels); !s.ok()) return s;
  const MatmulKernels& k = *kernels->matmul;
  Plan plans[kMostProducts];
  size_t bytes = in.type == Float::f32 ? 0 : round_up(size_t(in.rows * in.cols) * 4);
  bool quantized = false;
  int64_t work = 0, tasks = 0;
  for (int i = 0; i < count; ++i) {
    const Weights& w = products[i].weights;
    Plan& p = plans[i];
    p.product = products[i];
    p.floats = w.info().block == 1 || inputs == Inputs::f32;
    p.unit = p.floats ? kFloatUnitBytes : unit_bytes(k.format[w.format].shape);
    p.rows = in.rows;
    const int64_t whole = group_rows(in.cols, p.unit, k.columns);
    p.groups = (in.rows + whole - 1) / whole;
    p.tiles_per_task = in.rows <= kStreamRows ? kStreamRuns * k.tiles : k.tiles;
    p.row_tasks = (w.tiles() + p.tiles_per_task - 1) / p.tiles_per_task;
    bytes += round_up(panel_bytes(in.rows, in.cols, p.unit));
    quantized = quantized || !p.floats;
    work += in.rows * in.cols * w.rows;
    tasks += p.tasks();
  }
  if (quantized) bytes += round_up(Quantized::bytes(in.rows, in.cols));
  auto* memory = static_cast<uint8_t*>(thread_scratch(bytes, kCallScratch));
  if (!memory) return {Code::no_memory, "no memory for activations"};
  const int threads = work < kParallelProducts ? 1 : limit;

  const auto* x = static_cast<const float*>(in.x);
  int64_t row_stride = in.row_stride;
  if (in.type != Float::f32) {
    auto* wide = reinterpret_cast<float*>(memory);
    memory += round_up(size_t(in.rows * in.cols) * 4);
    for (int64_t r = 0; r < in.rows; ++r) {
      kernels->codec->widen(static_cast<const uint16_t*>(in.x) + r * in.row_stride, in.type, wide + r * in.cols, in.cols);
    }
    x = wide;
    row_stride = in.cols;
  }
  Quantized q = {};
  if (quantized) {
    q = quantize(k, x, row_stride, in.rows, in.cols, memory, threads);
    memory += round_up(Quantized::bytes(in.rows, in.cols));
  }
  for (int i = 0; i < count; ++i) {
    Plan& p = plans[i];
    p.panels = memory;
    if (p.floats) {
      arrange_floats(k, x, row_stride, in.rows, in.cols, memory, threads);
    } else {
      arrange(k, q, k.format[p.product.weights.format].shape, memory, threads);
    }
    memory += round_up(panel_bytes(in.rows, in.cols, p.unit));
  }

  std::atomic<bool> no_memory{false};
  parallel_for(tasks, threads, [&](int64_t task) {
    const Plan* p = plans;
    while (task >= p->tasks()) task -= p++->tasks();
    if (!run_task(k, *p, task)) no_memory.store(true);
  });
  if (no_memory.load()) return {Code::no_memory, "no memory for scratch"};
  return {};
}

}  // namespace kvant
