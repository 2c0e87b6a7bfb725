#include "matmul/panels.h"

#include <algorithm>

#include "runtime/pool.h"

namespace kvant {
namespace {

constexpr int64_t kGroupBytes = 640 * 1024;
constexpr int64_t kMostGroupRows = 120;
constexpr int32_t kFloatUnit = 128;
// Fewer elements than this are not worth waking a thread.
constexpr int64_t kParallelElements = 64 * 1024;
// Multiplications of one task, at least.
constexpr int64_t kTaskProducts = 128 * 1024;
// Up to so many columns a product is bound by memory.
constexpr int64_t kStreamColumns = 4;
// Tasks of products that are bound by memory take so many runs of tiles.
constexpr int64_t kStreamRuns = 2;
// Into so many tasks a matrix is cut where it has so many tiles.
constexpr int64_t kLeastTasks = 4;
// Tiles that a task takes of one matrix before it goes to the next: memory is read faster in order.
constexpr int64_t kJoinedTiles = 8;

int threads_for(int64_t elements, int limit) { return elements < kParallelElements ? 1 : limit; }

int64_t divide_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit; }

}  // namespace

Product::Product(const MatmulKernels& k, const Weights& w, int64_t stride, Inputs inputs)
    : weights(w), stride(stride), floats(w.block == 1 || inputs == Inputs::f32),
      shape(k.format[w.format].shape),
      unit(floats ? kFloatUnit : 36 + 4 * shape.groups * (shape.has_min ? 2 : 1)),
      width(floats ? k.float_columns : k.columns[shape.groups - 1]) {}

Weights Product::matrix(int64_t i) const {
  Weights w = weights;
  w.data += i * stride;
  return w;
}

bool Product::same_panels(const Product& other) const {
  if (weights.cols != other.weights.cols || floats != other.floats) return false;
  return floats || (shape.groups == other.shape.groups && shape.has_min == other.shape.has_min &&
                    shape.offset == other.shape.offset);
}

Cut::Cut(const MatmulKernels& k, const Product& product, int32_t unit)
    : cols(product.weights.cols), tiles(product.weights.tiles()), columns(product.width), register_tiles(k.tiles) {
  const int64_t row_bytes = std::max<int64_t>(divide_up(cols, 32) * unit, 1);
  const int64_t fit = std::min(kGroupBytes / row_bytes, kMostGroupRows);
  rows = std::max<int64_t>(fit / columns, 1) * columns;
}

int64_t Cut::task_tiles(int64_t group_columns) const {
  const int64_t one = std::max<int64_t>(16 * cols * (group_columns + kExpandColumns), 1);
  const int64_t least = divide_up(kTaskProducts, one);
  const int64_t runs = std::max(divide_up(least, register_tiles), group_columns <= kStreamColumns ? kStreamRuns : 1);
  const int64_t some = runs * register_tiles;
  // A single column needs no register tile, so that even a small matrix is shared out.
  return group_columns == 1 ? std::min(some, std::max<int64_t>(tiles / kLeastTasks, 1)) : some;
}

int64_t Cut::joined_tiles(int64_t all_columns) const {
  const int64_t least = divide_up(kTaskProducts, std::max<int64_t>(16 * cols * all_columns * (1 + kExpandColumns), 1));
  return std::max(least, std::min(kJoinedTiles, tiles / (2 * kLeastTasks)));
}

void Columns::add(const Cut& cut, int64_t columns, int32_t matrix) {
  if (columns <= 0) return;
  const int64_t each = divide_up(divide_up(columns, cut.groups(columns)), cut.columns) * cut.columns;
  for (int64_t done = 0; done < columns; done += each) {
    Group& g = groups[count];
    g.rows = std::min(columns - done, each);
    g.matrix = matrix;
    const int64_t tiles = std::max<int64_t>(std::min(cut.task_tiles(g.rows), cut.tiles), 1);
    g.tiles = int32_t(tiles);
    groups[++count] = {g.first + g.rows, 0, 0, 0, g.task + divide_up(cut.tiles, tiles)};
  }
}

const Group& Columns::of_task(int64_t task) const {
  return *(std::upper_bound(groups, groups + count, task, [](int64_t t, const Group& g) { return t < g.task; }) - 1);
}

void Rows::place(Carver& carver) {
  if (in_.type != Float::f32) wide_ = carver.take<float>(in_.rows * in_.cols);
  if (!quantized_) return;
  const int64_t blocks = in_.cols / 32;
  q_ = carver.take<int8_t>(in_.rows * in_.cols);
  d_ = carver.take<float>(in_.rows * blocks);
  sums_ = carver.take<int32_t>(2 * in_.rows * blocks);
}

void Rows::fill(const Kernels& kernels, int limit) {
  const int threads = threads_for(in_.rows * in_.cols, limit);
  const Float type = in_.type;
  const int64_t cols = in_.cols, stride = in_.row_stride, blocks = cols / 32;
  const void* given = in_.x;
  if (type != Float::f32) in_ = {wide_, Float::f32, in_.rows, cols, cols};
  if (type == Float::f32 && !quantized_) return;
  parallel_for(in_.rows, threads, [&](int64_t r) {
    if (type != Float::f32) {
      kernels.codec->widen(static_cast<const uint16_t*>(given) + r * stride, type, wide_ + r * cols, cols);
    }
    if (!quantized_) return;
    const auto* x = static_cast<const float*>(in_.x) + r * in_.row_stride;
    kernels.matmul->quantize(x, blocks, q_ + r * cols, d_ + r * blocks, sums_ + 2 * r * blocks);
  });
}

int64_t Rows::panel_bytes(const Product& product, int64_t columns) {
  return columns * divide_up(product.weights.cols, 32) * product.unit;
}

void Rows::write_floats(int64_t cols, int64_t c, const int32_t* rows, int columns, float* out) const {
  const auto* x = static_cast<const float*>(in_.x);
  for (int64_t i = 256 * c; i < cols && i < 256 * c + 256; ++i) {
    for (int r = 0; r < columns; ++r) *out++ = x[rows[r] * in_.row_stride + i];
  }
}

void Rows::arrange(const MatmulKernels& k, const Product& product, const Columns& columns, uint8_t* out,
                   int limit) const {
  const int64_t cols = product.weights.cols, chunks = product.weights.chunks();
  const Activations view = {q_, d_, sums_, cols / 32};
  parallel_for(columns.count * chunks, threads_for(columns.size() * cols, limit), [&](int64_t i) {
    const Group& group = columns.groups[i / chunks];
    const int64_t c = i % chunks;
    const Panels to(product, out, group);
    for (int64_t j = 0; j < group.rows; j += to.width) {
      const int width = int(std::min<int64_t>(group.rows - j, to.width));
      int32_t rows[kMostColumns];
      for (int r = 0; r < width; ++r) {
        const int64_t column = group.first + j + r;
        rows[r] = columns.rows ? columns.rows[column] : int32_t(column);
      }
      auto* panel = const_cast<uint8_t*>(to.at(c, j));
      if (product.floats) {
        write_floats(cols, c, rows, width, reinterpret_cast<float*>(panel));
      } else {
        k.records(view, rows, width, 8 * c, int(std::min<int64_t>(view.blocks - 8 * c, 8)), product.shape, panel);
      }
    }
  });
}

}  // namespace kvant
