// Activations of a product, arranged for the inner loops.
//
// Rows of x are taken in groups whose records fit the second-level cache; within a group the records
// lie chunk after chunk, panel after panel of as many rows as the register tile has columns, so that
// the loops read them in order.
#pragma once

#include "base/status.h"
#include "isa/select.h"

namespace kvant {

// One group of rows of x.
struct Panels {
  const uint8_t* data;
  int64_t rows, cols;
  int32_t unit_bytes;  // of one row, one block of 32 columns
  int32_t width;       // rows of a whole panel

  // The panel that begins with row j, in chunk c.
  const uint8_t* at(int64_t c, int64_t j) const {
    const int64_t left = cols - 256 * c, columns = left < 256 ? left : 256;
    return data + (256 * c * rows + j * columns) * unit_bytes / 32;
  }
};

// Memory for quantized rows, carved from one piece.
struct Quantized {
  Activations view;
  int64_t rows;
  static size_t bytes(int64_t rows, int64_t cols) { return size_t(rows) * (size_t(cols) + size_t(cols) / 32 * 12) + 192; }
};

// Rows of a group: so many that their records are about kGroupBytes, in whole panels.
int64_t group_rows(int64_t cols, int unit_bytes, int width);
size_t panel_bytes(int64_t rows, int64_t cols, int unit_bytes);

// x [rows][cols] f32, row_stride floats apart, into memory of Quantized::bytes.
Quantized quantize(const MatmulKernels& k, const float* x, int64_t row_stride, int64_t rows, int64_t cols, void* memory,
                   int limit);

// All groups one behind the other in memory of panel_bytes; group g begins with row g * group_rows.
void arrange(const MatmulKernels& k, const Quantized& x, const ProductShape& shape, uint8_t* out, int limit);
void arrange_floats(const MatmulKernels& k, const float* x, int64_t row_stride, int64_t rows, int64_t cols,
                    uint8_t* out, int limit);
Panels panels(const MatmulKernels& k, const uint8_t* data, int64_t rows, int64_t cols, int unit_bytes, int64_t group);

int unit_bytes(const ProductShape& shape);
constexpr int kFloatUnitBytes = 128;

}  // namespace kvant
