#include "codec/codec.h"

#include <atomic>

#include "isa/select.h"
#include "runtime/buffer.h"
#include "runtime/pool.h"

namespace kvant {
namespace {

// Elements of one task: what fits the first-level cache, so that the check for NaN and the encoder
// read memory once; encoders that weigh whole rows want several rows at a time.
constexpr int64_t kTaskElements = 8 * 1024;
constexpr int64_t kRowTaskElements = 64 * 1024;
// Of one decoding task: it ends with a fence when it writes around the caches.
constexpr int64_t kDecodeTaskElements = 32 * 1024;
// Results larger than this are written around the caches.
constexpr int64_t kStreamBytes = int64_t(8) << 20;

// Rectangles of a matrix.
struct Tiling {
  int64_t rows, cols, tile_rows, tile_cols, across, count;

  // About `elements` to a tile; columns are cut only in multiples of kMaxBlock, and not at all when
  // whole rows are wanted.
  Tiling(int64_t rows_, int64_t cols_, int64_t elements, bool whole_rows) : rows(rows_), cols(cols_) {
    tile_cols = !whole_rows && cols > elements ? elements / kMaxBlock * kMaxBlock : cols;
    tile_rows = tile_cols > 0 ? elements / tile_cols : 1;
    tile_rows = tile_rows < 1 ? 1 : tile_rows > kMaxEncodeRows ? kMaxEncodeRows : tile_rows;
    across = cols > 0 ? (cols + tile_cols - 1) / tile_cols : 0;
    count = (rows + tile_rows - 1) / tile_rows * across;
  }

  struct Tile {
    int64_t row, col, rows, cols;
  };

  Tile operator[](int64_t i) const {
    Tile t;
    t.row = i / across * tile_rows;
    t.col = i % across * tile_cols;
    t.rows = rows - t.row < tile_rows ? rows - t.row : tile_rows;
    t.cols = cols - t.col < tile_cols ? cols - t.col : tile_cols;
    return t;
  }
};

int64_t float_bytes(Float type) { return type == Float::f32 ? 4 : 2; }

const uint8_t* at(const FloatRows& x, int64_t row, int64_t col) {
  return static_cast<const uint8_t*>(x.data) + (row * x.row_stride + col) * float_bytes(x.type);
}

const uint8_t* packed_row(const PackedRows& p, int64_t row) {
  return p.data + (p.index ? p.index[row] : row) * p.row_stride;
}

void keep_smallest(std::atomic<int64_t>& smallest, int64_t value) {
  int64_t seen = smallest.load(std::memory_order_relaxed);
  while (value < seen && !smallest.compare_exchange_weak(seen, value)) {
  }
}

// Rows of x as f32: where they lie, or widened into scratch.
const float* as_f32(const Kernels& k, const FloatRows& x, int64_t row, int64_t col, int64_t count, float* scratch) {
  const uint8_t* p = at(x, row, col);
  if (x.type == Float::f32) return reinterpret_cast<const float*>(p);
  k.codec->widen(reinterpret_cast<const uint16_t*>(p), x.type, scratch, count);
  return scratch;
}

}  // namespace

Status encode(const FloatRows& x, int32_t format, const Importance& importance, uint8_t* out, int limit,
              int64_t& nonfinite) {
  const Kernels* k;
  if (const Status s = current_kernels(k); !s.ok()) return s;
  const FormatInfo& info = kFormats.row[format];
  const int64_t out_stride = x.cols / info.block * info.block_bytes;
  const bool weighted = importance.data && info.uses_importance;
  const Tiling tiling(x.rows, x.cols, weighted ? kRowTaskElements : kTaskElements, weighted);
  std::atomic<int64_t> bad{INT64_MAX};
  std::atomic<bool> no_memory{false};
  const auto find_nonfinite = [&](const Tiling::Tile& t) {
    for (int64_t r = t.row; r < t.row + t.rows; ++r) {
      const int64_t found = k->codec->first_nonfinite(at(x, r, t.col), x.type, t.cols);
      if (found >= 0) return keep_smallest(bad, r * x.cols + t.col + found);
    }
  };
  parallel_for(tiling.count, limit, [&](int64_t i) {
    const Tiling::Tile t = tiling[i];
    float* scratch = nullptr;
    if (x.type != Float::f32) {
      scratch = static_cast<float*>(thread_scratch(size_t(t.rows * t.cols) * 4));
      if (!scratch) return no_memory.store(true);
    }
    // Rows that share an importance vector go to the kernel together.
    for (int64_t r = 0; r < t.rows;) {
      const int64_t vector = weighted ? (t.row + r) / importance.rows_per_vector : 0;
      int64_t end = t.rows;
      if (weighted && (vector + 1) * importance.rows_per_vector - t.row < end) {
        end = (vector + 1) * importance.rows_per_vector - t.row;
      }
      EncodeJob job;
      job.rows = int32_t(end - r);
      job.cols = t.cols;
      job.importance = weighted ? importance.data + vector * x.cols + t.col : nullptr;
      job.out = out + (t.row + r) * out_stride + t.col / info.block * info.block_bytes;
      job.out_stride = out_stride;
      if (x.type == Float::f32) {
        job.x = reinterpret_cast<const float*>(at(x, t.row + r, t.col));
        job.row_stride = x.row_stride;
      } else {
        for (int64_t row = r; row < end; ++row) as_f32(*k, x, t.row + row, t.col, t.cols, scratch + row * t.cols);
        job.x = scratch + r * t.cols;
        job.row_stride = t.cols;
      }
      if (!k->codec->encode[format](job)) return find_nonfinite(t);
      r = end;
    }
  });
  if (no_memory.load()) return {Code::no_memory, "no memory for scratch"};
  nonfinite = bad.load();
  if (nonfinite != INT64_MAX) return {Code::bad_shape, "weights hold a NaN or an infinity"};
  nonfinite = -1;
  return {};
}

Status decode(const PackedRows& whole, Float type, void* out, int limit) {
  const Kernels* k;
  if (const Status s = current_kernels(k); !s.ok()) return s;
  const FormatInfo& info = kFormats.row[whole.format];
  PackedRows packed = whole;
  if (!whole.index && whole.row_stride == whole.cols / info.block * info.block_bytes) {
    // Rows that follow each other are one row.
    packed.cols *= packed.rows;
    packed.rows = packed.rows > 0 ? 1 : 0;
  }
  const Tiling tiling(packed.rows, packed.cols, kDecodeTaskElements, false);
  const bool large = packed.rows * packed.cols * 4 > kStreamBytes;
  std::atomic<bool> no_memory{false};
  parallel_for(tiling.count, limit, [&](int64_t i) {
    const Tiling::Tile t = tiling[i];
    const int64_t blocks = t.cols / info.block;
    for (int64_t r = t.row; r < t.row + t.rows; ++r) {
      const uint8_t* src = packed_row(packed, r) + t.col / info.block * info.block_bytes;
      const int64_t offset = r * packed.cols + t.col;
      if (type == Float::f32) {
        float* dst = static_cast<float*>(out) + offset;
        const bool aligned = reinterpret_cast<uintptr_t>(dst) % 64 == 0;
        k->codec->decode[packed.format](src, dst, blocks, large && aligned);
      } else {
        float* scratch = static_cast<float*>(thread_scratch(size_t(t.cols) * 4));
        if (!scratch) return no_memory.store(true);
        k->codec->decode[packed.format](src, scratch, blocks, false);
        k->codec->narrow(scratch, type, static_cast<uint16_t*>(out) + offset, t.cols);
      }
    }
  });
  if (no_memory.load()) return {Code::no_memory, "no memory for scratch"};
  return {};
}

Status row_errors(const FloatRows& x, const PackedRows& packed, const Importance& importance, RowError* out,
                  int limit) {
  const Kernels* k;
  if (const Status s = current_kernels(k); !s.ok()) return s;
  const FormatInfo& info = kFormats.row[packed.format];
  const Tiling tiling(x.rows, x.cols, kRowTaskElements, true);
  std::atomic<bool> no_memory{false};
  parallel_for(tiling.count, limit, [&](int64_t i) {
    const Tiling::Tile t = tiling[i];
    float* scratch = static_cast<float*>(thread_scratch(size_t(t.cols) * 8));
    if (!scratch) return no_memory.store(true);
    for (int64_t r = t.row; r < t.row + t.rows; ++r) {
      k->codec->decode[packed.format](packed_row(packed, r), scratch, t.cols / info.block, false);
      const float* w = importance.data ? importance.data + r / importance.rows_per_vector * x.cols : nullptr;
      k->codec->row_error(as_f32(*k, x, r, 0, t.cols, scratch + t.cols), scratch, w, t.cols, out[r]);
    }
  });
  if (no_memory.load()) return {Code::no_memory, "no memory for scratch"};
  return {};
}

Status first_invalid_block(const PackedRows& packed, int limit, int64_t& block) {
  const Kernels* k;
  if (const Status s = current_kernels(k); !s.ok()) return s;
  const FormatInfo& info = kFormats.row[packed.format];
  const Tiling tiling(packed.rows, packed.cols, kTaskElements, false);
  std::atomic<int64_t> bad{INT64_MAX};
  parallel_for(tiling.count, limit, [&](int64_t i) {
    const Tiling::Tile t = tiling[i];
    for (int64_t r = t.row; r < t.row + t.rows; ++r) {
      const uint8_t* src = packed_row(packed, r) + t.col / info.block * info.block_bytes;
      const int64_t found = k->codec->first_invalid[packed.format](src, t.cols / info.block);
      if (found >= 0) return keep_smallest(bad, (r * packed.cols + t.col) / info.block + found);
    }
  });
  block = bad.load() == INT64_MAX ? -1 : bad.load();
  return {};
}

}  // namespace kvant
