// The Walsh-Hadamard transform of blocks: y = H x / sqrt(n), H symmetric and of +1 and -1, in log2 n stages of sums
// and differences of elements 1, 2, 4, ... apart, each rounded; then one product. The stages within sixteen
// elements happen in a register, the others between those.
#pragma once

#include "kernels/ops.h"

namespace kvant {

// Where blocks lie: those of a row follow each other.
struct HadamardPlaces {
  const HadamardJob& job;
  int64_t per_row;

  int64_t row(int64_t block) const { return block / per_row; }
  int64_t column(int64_t block) const { return block % per_row * job.block; }
  const float* in(int64_t block) const { return job.rows.x + row(block) * job.rows.stride + column(block); }
  float* out(int64_t block) const { return job.rows.out + row(block) * job.rows.out_stride + column(block); }
};

// Pieces of kLanes elements h and 2 h pieces apart, while their four are in registers; h alone where there is no 2 h.
template <class V>
KVANT_INLINE void hadamard_stages(float* x, int pieces, int h) {
  const auto at = [&](int i) KVANT_LAMBDA { return x + i * V::kLanes; };
  if (2 * h == pieces) {
    for (int i = 0; i < h; ++i) {
      const auto a = V::load(at(i)), b = V::load(at(i + h));
      V::store(at(i), a + b);
      V::store(at(i + h), a - b);
    }
    return;
  }
  for (int first = 0; first < pieces; first += 4 * h) {
    for (int i = first; i < first + h; ++i) {
      const auto a = V::load(at(i)), b = V::load(at(i + h)), c = V::load(at(i + 2 * h)), d = V::load(at(i + 3 * h));
      const auto sum = a + b, difference = a - b, next_sum = c + d, next_difference = c - d;
      V::store(at(i), sum + next_sum);
      V::store(at(i + h), difference + next_difference);
      V::store(at(i + 2 * h), sum - next_sum);
      V::store(at(i + 3 * h), difference - next_difference);
    }
  }
}

// 1 / sqrt(2^k), rounded.
KVANT_INLINE float hadamard_scale(int n) {
  float scale = 1.0f;
  for (; n > 2; n /= 4) scale *= 0.5f;
  return n == 2 ? scale * 0x1.6a09e6p-1f : scale;
}

template <class V>
void hadamard(const HadamardJob& job) noexcept {
  constexpr int kLanes = V::kLanes;
  const int n = job.block, pieces = n / kLanes;
  const HadamardPlaces places = {job, job.rows.cols / n};
  const int64_t blocks = job.rows.rows * places.per_row;
  const auto scale = V::splat(hadamard_scale(n));
  const float* before = job.inverse ? nullptr : job.signs;
  const float* after = job.inverse ? job.signs : nullptr;
  alignas(64) float x[kMostHadamard];
  for (int64_t block = 0; block < blocks; ++block) {
    const float* in = places.in(block);
    float* out = places.out(block);
    for (int i = 0; i < n; i += kLanes) {
      auto piece = V::load(in + i);
      if (before) piece = piece * V::load(before + i);
      if constexpr (kLanes > 1) piece = V::butterflies(piece);
      V::store(x + i, piece);
    }
    for (int h = 1; h < pieces; h *= 4) hadamard_stages<V>(x, pieces, h);
    for (int i = 0; i < n; i += kLanes) {
      const auto factor = after ? V::load(after + i) * scale : scale;
      V::store(out + i, canonical<V>(V::load(x + i) * factor));
    }
  }
}

}  // namespace kvant
