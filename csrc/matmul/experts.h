// Products with the experts that a router chose for each token.
#pragma once

#include "matmul/panels.h"

namespace kvant {

// Matrices of one shape, from one to the next `stride` bytes.
struct Experts {
  Weights weights;  // the first
  int64_t count, stride;
};

// What a router chose: for each token `top` experts, the same perhaps repeatedly.
struct Routing {
  const int64_t* ids;
  int64_t tokens, top, experts;

  int64_t pairs() const { return tokens * top; }
};

// Pairs of token and slot (numbered token * top + slot) by expert, those of one expert in order.
// Columns of a product are pairs in this order, so that each expert's bytes are read once.
class Sorted {
 public:
  explicit Sorted(const Routing& routing) : routing_(routing) {}
  void place(Carver& carver);
  void fill();

  const int32_t* pairs() const { return pairs_; }
  const int32_t* tokens() const { return tokens_; }  // of the pairs
  // columns.groups has room for groups(cut).
  int64_t groups(const Cut& cut) const;
  void cut(const Cut& cut, Columns& columns) const;

 private:
  Routing routing_;
  int32_t* begin_ = nullptr;  // of each expert, and the end
  int32_t* pairs_ = nullptr;
  int32_t* tokens_ = nullptr;
};

// Row t * top + s of y, y_stride floats apart: row t of x, or with per_slot row t * top + s, times the
// expert ids[t][s].
Status matmul_experts(const ProductInput& x, bool per_slot, const Experts& experts, const Routing& routing, float* y,
                      int64_t y_stride, Inputs inputs, int limit);

}  // namespace kvant
