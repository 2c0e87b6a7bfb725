// Activations of products, arranged for the inner loops.
//
// The columns of a product are rows of x, in any order and any of them repeatedly. They are taken in
// groups whose records fit the second-level cache, each multiplied by one matrix; within a group the
// records lie chunk after chunk, panel after panel of as many columns as the register tile has, so
// that the loops read them in order.
#pragma once

#include "matmul/packed.h"
#include "runtime/carver.h"

namespace kvant {

// Expanding a tile takes as long as multiplying it by so many columns.
constexpr int64_t kExpandColumns = 3;

// How activations meet quantized weights.
enum class Inputs : int32_t { q8 = 0, f32 = 1 };

struct ProductInput {
  const void* x;
  Float type;
  int64_t rows, cols;
  int64_t row_stride;  // elements
};

// One of `count` matrices of one shape, and how it takes activations.
struct Product {
  Weights weights;  // the first matrix
  int64_t stride;   // bytes from matrix to matrix
  bool floats;
  ProductShape shape;
  int32_t unit;   // bytes that one column has for 32 elements
  int32_t width;  // the most columns of a panel

  Product() = default;
  Product(const MatmulKernels& k, const Weights& w, int64_t stride, Inputs inputs);
  Weights matrix(int64_t i) const;
  // Whether panels made for one serve the other.
  bool same_panels(const Product& other) const;
};

// Some columns, and their share of the tasks.
struct Group {
  int64_t first, rows;
  int32_t matrix;
  int32_t tiles;  // of a task
  int64_t task;   // how many come before
};

// The largest groups of a product, and what its tasks are sized by.
struct Cut {
  int64_t rows, cols, tiles;
  int32_t columns, register_tiles;

  // unit: for products that share their groups, the largest of them.
  Cut(const MatmulKernels& k, const Product& product, int32_t unit);
  Cut(const MatmulKernels& k, const Product& product) : Cut(k, product, product.unit) {}
  int64_t groups(int64_t columns_of_one_matrix) const { return (columns_of_one_matrix + rows - 1) / rows; }
  int64_t task_tiles(int64_t columns_of_group) const;
  // Of tasks that take such tiles of several matrices, all these columns together.
  int64_t joined_tiles(int64_t columns_of_all) const;
};

// Columns in groups. groups holds one more, which says where the last ends.
struct Columns {
  Group* groups = nullptr;
  int64_t count = 0;
  const int32_t* rows = nullptr;  // of x, for each column; null: column i is row i

  void clear() { groups[count = 0] = {}; }
  // The next columns, all for one matrix, in groups of about the same size.
  void add(const Cut& cut, int64_t columns, int32_t matrix);
  int64_t size() const { return groups[count].first; }
  int64_t tasks() const { return groups[count].task; }
  const Group& of_task(int64_t task) const;
};

// One group, arranged.
struct Panels {
  const uint8_t* data;
  int64_t rows, cols;
  int32_t unit, width;  // width: columns of a whole panel

  Panels(const Product& product, const uint8_t* all, const Group& group)
      : data(all + group.first * product.weights.cols * product.unit / 32), rows(group.rows),
        cols(product.weights.cols), unit(product.unit) {
    // As many panels as there must be, of about the same width.
    const int64_t panels = (rows + product.width - 1) / product.width;
    width = int32_t(panels ? (rows + panels - 1) / panels : product.width);
  }
  // The panel that begins with column j, in chunk c.
  const uint8_t* at(int64_t c, int64_t j) const {
    const int64_t left = cols - 256 * c, columns = left < 256 ? left : 256;
    return data + (256 * c * rows + j * columns) * unit / 32;
  }
};

// Rows of x as products take them: f32, and in eight bits if one of them wants that.
class Rows {
 public:
  Rows(const ProductInput& in, bool quantized) : in_(in), quantized_(quantized) {}
  void place(Carver& carver);
  // Other floats than those given first.
  void use(const float* x) { in_.x = x; }
  void fill(const Kernels& kernels, int limit);

  static int64_t panel_bytes(const Product& product, int64_t columns);
  // out: all groups one behind the other, panel_bytes.
  void arrange(const MatmulKernels& k, const Product& product, const Columns& columns, uint8_t* out, int limit) const;

 private:
  void write_floats(int64_t cols, int64_t c, const int32_t* rows, int columns, float* out) const;

  ProductInput in_;
  bool quantized_;
  float* wide_ = nullptr;
  int8_t* q_ = nullptr;
  float* d_ = nullptr;
  int32_t* sums_ = nullptr;
};

}  // namespace kvant
