// Matrix products y = x w^T of float activations and weights in any format.
#pragma once

#include "matmul/packed.h"

namespace kvant {

// What quantized weights are multiplied with: activations rounded to eight bits, or as they are.
enum class Precision : int32_t { q8 = 0, f32 = 1 };

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

Status matmul(const ProductInput& x, const ProductOutput* products, int count, Precision precision, int limit);

}  // namespace kvant
