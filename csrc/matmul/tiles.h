// The loops of every product: tiles of sixteen rows of a matrix times one group of columns.
#pragma once

#include "matmul/panels.h"

namespace kvant {

// Products smaller than this many multiplications run in the caller.
constexpr int64_t kParallelProducts = 128 * 1024;

// Memory of a task. Every task of a call asks for it anew; it is this thread's.
struct TaskMemory {
  RowTile* tiles = nullptr;
  uint8_t* packed = nullptr;
  float* floats = nullptr;  // decoded tiles
  float* sums = nullptr;
  float* extra = nullptr;   // `extra` floats for the caller
  explicit operator bool() const { return tiles != nullptr; }

  // columns: the most of a group.
  static TaskMemory get(const MatmulKernels& k, bool floats, int64_t columns, int64_t extra = 0);
};

// Where a product goes: column j of the group to the row rows[j] of y (null: j), row r of the matrix
// to the element r - first of it.
struct Target {
  float* y;
  int64_t stride;
  const int32_t* rows = nullptr;
  int64_t first = 0;
};

// Tiles begin .. end - 1 of group.matrix times the group. panels: of all groups.
void multiply_tiles(const MatmulKernels& k, const Product& product, const uint8_t* panels, const Group& group,
                    int64_t begin, int64_t end, const Target& target, const TaskMemory& memory);

}  // namespace kvant
