// Normalization, softmax and gated activations over rows. Sums over a row are sixteen: number l takes
// the elements l, l + 16, ... in order; then the upper half is added to the lower, repeatedly. What a
// row lacks to a multiple of 16 is filled with what changes nothing. Every NaN written is 0x7fc00000.
#pragma once

#include "kernels/math.h"
#include "kernels/sixteen.h"

namespace kvant {

// step(x, out) for sixteen elements after the other. The last ones go through a buffer, in and out,
// filled up with `fill`; step gets their number.
template <class V, class Step>
KVANT_INLINE void each_sixteen(const float* x, float* out, int64_t count, float fill, Step&& step) {
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) step(x + i, out ? out + i : nullptr, 16);
  if (i == count) return;
  alignas(64) float buffer[16];
  const int rest = int(count - i);
  for (int l = 0; l < 16; ++l) buffer[l] = l < rest ? x[i + l] : fill;
  step(buffer, out ? buffer : nullptr, rest);
  if (out) memcpy(out + i, buffer, size_t(rest) * 4);
}

// y = (x * r) * weight with r = 1 / sqrt(sum x^2 / cols + eps).
template <class V>
void rms_norm(const RowsJob& job, const float* weight, double eps) noexcept {
  const float* x = job.x;
  float* out = job.out;
  for (int64_t row = 0; row < job.rows; ++row, x += job.stride, out += job.out_stride) {
    Sixteen<V> sum = splat16<V>(0.0f);
    each_sixteen<V>(x, nullptr, job.cols, 0.0f, [&](const float* in, float*, int) {
      each_piece<V>([&](int p, int first) {
        const auto a = V::load(in + first);
        sum.v[p] = V::fma(a, a, sum.v[p]);
      });
    });
    const auto mean = V::splat(sum16<V>(sum)) / V::splat(float(job.cols));
    const auto r = V::splat(1.0f) / V::sqrt(mean + V::splat(float(eps)));
    const float* w = weight;
    each_sixteen<V>(x, out, job.cols, 0.0f, [&](const float* in, float* to, int count) {
      alignas(64) float padded[16] = {};
      const float* factor = w;
      if (w && count < 16) {
        memcpy(padded, w, size_t(count) * 4);
        factor = padded;
      }
      each_piece<V>([&](int, int first) {
        auto y = V::load(in + first) * r;
        if (w) y = y * V::load(factor + first);
        V::store(to + first, canonical<V>(y));
      });
      if (w) w += 16;
    });
  }
}

// y = e * (1 / sum e) with e = exp(x * scale - max(x * scale)). A row that holds a NaN, +inf, or nothing but
// -inf gives NaN throughout: its differences or its sum are not numbers.
template <class V>
void softmax(const RowsJob& job, double scale) noexcept {
  const auto factor = V::splat(float(scale));
  const float* x = job.x;
  float* out = job.out;
  for (int64_t row = 0; row < job.rows; ++row, x += job.stride, out += job.out_stride) {
    Sixteen<V> largest = splat16<V>(x[0] * float(scale));
    each_sixteen<V>(x, nullptr, job.cols, x[0], [&](const float* in, float*, int) {
      each_piece<V>([&](int p, int first) { largest.v[p] = V::max(V::load(in + first) * factor, largest.v[p]); });
    });
    const auto max = V::splat(reduce16<V>(largest, [](float a, float b) { return a > b ? a : b; }));
    Sixteen<V> sum = splat16<V>(0.0f);
    each_sixteen<V>(x, out, job.cols, 0.0f, [&](const float* in, float* to, int count) {
      each_piece<V>([&](int, int first) {
        V::store(to + first, exp_nonpositive<V>(V::load(in + first) * factor - max));
      });
      for (int l = count; l < 16; ++l) to[l] = 0.0f;
      each_piece<V>([&](int p, int first) { sum.v[p] = sum.v[p] + V::load(to + first); });
    });
    const auto share = V::splat(1.0f) / V::splat(sum16<V>(sum));
    each_sixteen<V>(out, out, job.cols, 0.0f, [&](const float* in, float* to, int) {
      each_piece<V>([&](int, int first) { V::store(to + first, canonical<V>(V::load(in + first) * share)); });
    });
  }
}

// One fma for each row, for as many columns at a time as there are lanes.
template <class V>
void weighted_sum(const float* rows, int64_t stride, const float* weights, int64_t count, float* out,
                  int64_t cols) noexcept {
  constexpr int kLanes = V::kLanes;
  const auto sum = [=](int64_t column, float* to, int width) {
    auto y = V::splat(0.0f);
    const float* x = rows + column;
    for (int64_t r = 0; r < count; ++r, x += stride) {
      alignas(64) float padded[kLanes] = {};
      if (width < kLanes) memcpy(padded, x, size_t(width) * 4);
      y = V::fma(V::splat(weights[r]), V::load(width < kLanes ? padded : x), y);
    }
    V::store(to, canonical<V>(y));
  };
  int64_t i = 0;
  for (; i + kLanes <= cols; i += kLanes) sum(i, out + i, kLanes);
  if (i == cols) return;
  alignas(64) float last[kLanes];
  sum(i, last, int(cols - i));
  memcpy(out + i, last, size_t(cols - i) * 4);
}

template <class V>
void scale(const float* x, double factor, float* out, int64_t count) noexcept {
  const auto f = V::splat(float(factor));
  each_sixteen<V>(x, out, count, 0.0f, [&](const float* in, float* to, int) {
    each_piece<V>([&](int, int first) { V::store(to + first, canonical<V>(V::load(in + first) * f)); });
  });
}

template <class V>
void add(const float* x, float* out, int64_t count) noexcept {
  each_sixteen<V>(x, out, count, 0.0f, [&](const float* in, float* to, int rest) {
    // The last ones stand in a buffer, those they are added to where they were.
    alignas(64) float padded[16] = {};
    if (rest < 16) memcpy(padded, out + (count - rest), size_t(rest) * 4);
    const float* y = rest < 16 ? padded : to;
    each_piece<V>([&](int, int first) {
      V::store(to + first, canonical<V>(V::load(y + first) + V::load(in + first)));
    });
  });
}

template <class V, class Act>
void activation_mul(const float* gate, const float* up, float* out, int64_t count) noexcept {
  constexpr int kLanes = V::kLanes;
  const auto run = [](const float* g, const float* u, float* to) {
    V::store(to, canonical<V>(Act::template apply<V>(V::load(g)) * V::load(u)));
  };
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) run(gate + i, up + i, out + i);
  if (i == count) return;
  alignas(64) float g[kLanes] = {}, u[kLanes] = {};
  memcpy(g, gate + i, size_t(count - i) * 4);
  memcpy(u, up + i, size_t(count - i) * 4);
  run(g, u, g);
  memcpy(out + i, g, size_t(count - i) * 4);
}

}  // namespace kvant
