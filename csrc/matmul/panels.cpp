#include "matmul/panels.h"

#include <cstring>

#include "runtime/pool.h"

namespace kvant {
namespace {

constexpr int64_t kGroupBytes = 640 * 1024;
// Fewer elements than this are not worth waking a thread.
constexpr int64_t kParallelElements = 64 * 1024;

int threads_for(int64_t elements, int limit) { return elements < kParallelElements ? 1 : limit; }

}  // namespace

int unit_bytes(const ProductShape& shape) { return 36 + 4 * shape.groups * (shape.has_min ? 2 : 1); }

int64_t group_rows(int64_t cols, int unit_bytes, int width) {
  const int64_t row_bytes = (cols + 31) / 32 * unit_bytes;
  const int64_t rows = kGroupBytes / (row_bytes > 0 ? row_bytes : 1) / width * width;
  return rows < width ? width : rows < 120 / width * width ? rows : 120 / width * width;
}

size_t panel_bytes(int64_t rows, int64_t cols, int unit_bytes) {
  return size_t(rows) * size_t((cols + 31) / 32) * size_t(unit_bytes) + 64;
}

Panels panels(const MatmulKernels& k, const uint8_t* data, int64_t rows, int64_t cols, int unit, int64_t group) {
  const int64_t whole = group_rows(cols, unit, k.columns), first = group * whole;
  return {data + first * cols * unit / 32, rows - first < whole ? rows - first : whole, cols, unit, k.columns};
}

Quantized quantize(const MatmulKernels& k, const float* x, int64_t row_stride, int64_t rows, int64_t cols, void* memory,
                   int limit) {
  const int64_t blocks = cols / 32;
  auto* d = static_cast<float*>(memory);
  auto* sums = reinterpret_cast<int32_t*>(d + rows * blocks);
  auto* q = reinterpret_cast<int8_t*>(sums + 2 * rows * blocks);
  parallel_for(rows, threads_for(rows * cols, limit), [&](int64_t r) {
    k.quantize(x + r * row_stride, blocks, q + r * cols, d + r * blocks, sums + 2 * r * blocks);
  });
  return {{q, d, sums, blocks}, rows};
}

void arrange(const MatmulKernels& k, const Quantized& x, const ProductShape& shape, uint8_t* out, int limit) {
  const int64_t cols = 32 * x.view.blocks, whole = group_rows(cols, unit_bytes(shape), k.columns);
  const int64_t width = k.columns, per_group = whole / width, count = (x.rows + width - 1) / width;
  parallel_for(count, threads_for(x.rows * cols, limit), [&](int64_t p) {
    const Panels group = panels(k, out, x.rows, cols, unit_bytes(shape), p / per_group);
    const int64_t first = p / per_group * whole, j = p % per_group * width;
    const int columns = int(group.rows - j < width ? group.rows - j : width);
    for (int64_t c = 0; 256 * c < cols; ++c) {
      const int64_t left = x.view.blocks - 8 * c;
      k.records(x.view, first + j, columns, 8 * c, int(left < 8 ? left : 8), shape, const_cast<uint8_t*>(group.at(c, j)));
    }
  });
}

void arrange_floats(const MatmulKernels& k, const float* x, int64_t row_stride, int64_t rows, int64_t cols,
                    uint8_t* out, int limit) {
  const int64_t whole = group_rows(cols, kFloatUnitBytes, k.columns);
  const int64_t width = k.columns, per_group = whole / width, count = (rows + width - 1) / width;
  parallel_for(count, threads_for(rows * cols, limit), [&](int64_t p) {
    const Panels group = panels(k, out, rows, cols, kFloatUnitBytes, p / per_group);
    const int64_t first = p / per_group * whole, j = p % per_group * width;
    const int64_t columns = group.rows - j < width ? group.rows - j : width;
    for (int64_t c = 0; 256 * c < cols; ++c) {
      float* to = reinterpret_cast<float*>(const_cast<uint8_t*>(group.at(c, j)));
      for (int64_t i = 256 * c; i < cols && i < 256 * c + 256; ++i) {
        for (int64_t r = 0; r < columns; ++r) *to++ = x[(first + j + r) * row_stride + i];
      }
    }
  });
}

}  // namespace kvant
