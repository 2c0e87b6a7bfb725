// The Walsh-Hadamard transform of blocks: y = H x / sqrt(n), H symmetric and of +1 and -1, in log2 n stages of sums
// and differences of elements 1, 2, 4, ... apart, each rounded; then one product. As many blocks as V has lanes go
// together, so that no stage needs a sum across a vector.
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

// Elements h and 2 h apart, while their four are in registers; h alone where there is no 2 h.
template <class V>
KVANT_INLINE void hadamard_stages(float* x, int n, int h) {
  const auto at = [&](int i) KVANT_LAMBDA { return x + i * V::kLanes; };
  if (2 * h == n) {
    for (int i = 0; i < h; ++i) {
      const auto a = V::load(at(i)), b = V::load(at(i + h));
      V::store(at(i), a + b);
      V::store(at(i + h), a - b);
    }
    return;
  }
  for (int first = 0; first < n; first += 4 * h) {
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

// x[i] *= factor(i)
template <class V, class Factor>
KVANT_INLINE void multiply_each(float* x, int n, Factor&& factor) {
  for (int i = 0; i < n; ++i) V::store(x + i * V::kLanes, V::load(x + i * V::kLanes) * V::splat(factor(i)));
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
  const int n = job.block;
  const HadamardPlaces places = {job, job.rows.cols / n};
  const int64_t blocks = job.rows.rows * places.per_row;
  const float scale = hadamard_scale(n);
  alignas(64) float x[kMostHadamard * kLanes];
  for (int64_t first = 0; first < blocks; first += kLanes) {
    const int count = int(blocks - first < kLanes ? blocks - first : kLanes);
    // Lanes without a block repeat the last.
    V::transpose([&](int lane) KVANT_LAMBDA { return places.in(first + (lane < count ? lane : count - 1)); }, n, x);
    if (job.signs && !job.inverse) multiply_each<V>(x, n, [&](int i) KVANT_LAMBDA { return job.signs[i]; });
    for (int h = 1; h < n; h *= 4) hadamard_stages<V>(x, n, h);
    const bool flip = job.signs && job.inverse;
    multiply_each<V>(x, n, [&](int i) KVANT_LAMBDA { return flip ? job.signs[i] * scale : scale; });
    for (int i = 0; i < n; i += 16) {
      alignas(64) float back[16 * kLanes];
      const float* part = x + i * kLanes;
      if constexpr (kLanes > 1) V::transpose([&](int r) KVANT_LAMBDA { return part + r * kLanes; }, 16, back);
      const float* from = kLanes > 1 ? back : part;
      for (int lane = 0; lane < count; ++lane) {
        each_sixteen<V>(from + lane * 16, places.out(first + lane) + i, 16, 0.0f, [](const float* y, float* to, int) {
          each_piece<V>([&](int, int piece) { V::store(to + piece, canonical<V>(V::load(y + piece))); });
        });
      }
    }
  }
}

}  // namespace kvant
