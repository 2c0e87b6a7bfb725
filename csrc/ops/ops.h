// The operations around matrix products: splits rows into tasks for the pool and calls the kernels in use.
// Small inputs are one task, which the caller runs without waking the pool. Arguments are checked
// by the caller (capi) once.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "kernels/kernels.h"

namespace kvant {

// weight: cols floats, or null.
Status rms_norm(const RowsJob& rows, const float* weight, double eps, int limit);

Status softmax(const RowsJob& rows, double scale, int limit);

// rows.out may be rows.x.
Status hadamard(const HadamardJob& job, int limit);

Status scale(const RowsJob& rows, double factor, int limit);

// rows.out += rows.x; a stride of 0 adds one row to all.
Status add(const RowsJob& rows, int limit);

enum class SharesOf : int32_t { all, normed, chosen };

// ids and shares [rows, top] without gaps; 1 <= top <= experts.
struct Route {
  const float* scores;
  int64_t stride, rows, experts, top;
  SharesOf shares_of;
  int64_t* ids;
  float* shares;
};

Status route(const Route& job, int limit);

// rows.x are the gates; up has rows of its own stride.
Status activation_mul(Activation activation, const RowsJob& rows, const float* up, int64_t up_stride, int limit);

// Floats [tokens, heads, dim], strides in floats.
struct Rope {
  const float* x;
  int64_t token_stride, head_stride;
  const int64_t* positions;
  int64_t tokens;
  int32_t heads, dim, rotary;
  bool interleaved;
  double theta, scale;
  const float* factors;  // rotary / 2, or null
  float* out;
  int64_t out_token_stride, out_head_stride;
};

Status rope(const Rope& job, int limit);

// Rows of `vocab` logits, strides in floats; vocab is at least 1.
struct Divergence {
  const float* base;
  int64_t base_stride;
  const float* test;
  int64_t test_stride;
  int64_t rows, vocab;
  RowDivergence* out;
};

Status divergence(const Divergence& job, int limit);

}  // namespace kvant
