// Encoding, decoding and measuring whole tensors: splits the work into tasks for the pool and
// calls the kernels in use. Arguments are checked by the caller (capi) once.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "kernels/kernels.h"

namespace kvant {

// A matrix of floats: rows of cols elements, row_stride elements apart.
struct FloatRows {
  const void* data;
  Float type;
  int64_t rows, cols, row_stride;
};

// Packed rows, row_stride bytes apart. When index is set, row i is row index[i] of data.
struct PackedRows {
  const uint8_t* data;
  int32_t format;
  int64_t rows, cols, row_stride;
  const int64_t* index;
};

// Importance weights: one vector of cols floats for each run of `rows_per_vector` rows; or null.
struct Importance {
  const float* data;
  int64_t rows_per_vector;
};

// nonfinite: flat index (row * cols + col) of the first NaN or infinity in x, with Code::bad_shape;
// out is then unspecified.
Status encode(const FloatRows& x, int32_t format, const Importance& importance, uint8_t* out, int limit,
              int64_t& nonfinite);

Status decode(const PackedRows& packed, Float type, void* out, int limit);

// Error sums of each row.
Status row_errors(const FloatRows& x, const PackedRows& packed, const Importance& importance, RowError* out,
                  int limit);

// Index of the first block whose scale is not a finite number of the format, or -1.
Status first_invalid_block(const PackedRows& packed, int limit, int64_t& block);

}  // namespace kvant
