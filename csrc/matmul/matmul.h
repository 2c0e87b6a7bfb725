// Matrix products y = x w^T of float activations and weights in any format.
#pragma once

#include "matmul/packed.h"

namespace kvant {

// How activations meet quantized weights.
enum class Inputs : int32_t { q8 = 0, f32 = 1 };

struct ProductInput {
  const void* x;
  Float type;
  int64_t rows, cols;
  int64_t row_stride;  // elements
};

// One of the products that share their activations.
struct ProductOutput {
  Weights weights;
  float* y;            // rows x weights.rows
  int64_t row_stride;  // floats from row to row
};

constexpr int kMostProducts = 16;

Status matmul(const ProductInput& x, const ProductOutput* products, int count, Inputs inputs, int limit);

}  // namespace kvant
