// Rotary position embedding. Frequencies and angles are f64 in +, -, * and / only, one at a time: the
// same bits everywhere, and compilers make vectors of the loops. The tables are rounded to f32; the rotation
//   y0 = fma(x0, cos, -(x1 * sin)),  y1 = fma(x1, cos, x0 * sin)
// is f32. Every NaN that it writes is 0x7fc00000.
#pragma once

#include "kernels/math.h"

namespace kvant {

// x in [-709, 0]: x = n ln 2 + r, then a Taylor series; 0 below 2^-1022.
KVANT_INLINE double exp64(double x) {
  constexpr double kRound = kRound64 + 1023.0;
  constexpr double kTerms[] = {1.0,          1.0,           1.0 / 2.0,      1.0 / 6.0,       1.0 / 24.0,
                               1.0 / 120.0,  1.0 / 720.0,   1.0 / 5040.0,   1.0 / 40320.0,   1.0 / 362880.0,
                               1.0 / 3628800.0, 1.0 / 39916800.0, 1.0 / 479001600.0, 1.0 / 6227020800.0};
  const double t = x * 0x1.71547652b82fep+0 + kRound;
  const double n = t - kRound;
  const double r = (x - n * 0x1.62e42feep-1) - n * 0x1.a39ef35793c76p-33;
  return polynomial64(r, kTerms) * __builtin_bit_cast(double, __builtin_bit_cast(uint64_t, t) << 52);
}

// |angle| <= kMaxAngle. angle = n pi / 2 + r with pi / 2 in three parts, of which n times the first two is
// exact; then Taylor series for |r| <= pi / 4. Errors stay below 1e-15.
KVANT_INLINE void cos_sin64(double angle, float& cos, float& sin) {
  constexpr double kSin[] = {1.0, -1.0 / 6.0, 1.0 / 120.0, -1.0 / 5040.0, 1.0 / 362880.0, -1.0 / 39916800.0,
                             1.0 / 6227020800.0, -1.0 / 1307674368000.0, 1.0 / 355687428096000.0};
  constexpr double kCos[] = {1.0, -1.0 / 2.0, 1.0 / 24.0, -1.0 / 720.0, 1.0 / 40320.0, -1.0 / 3628800.0,
                             1.0 / 479001600.0, -1.0 / 87178291200.0, 1.0 / 20922789888000.0};
  const double t = angle * 0x1.45f306dc9c883p-1 + kRound64;
  const double n = t - kRound64;
  const double r = ((angle - n * 0x1.921fb5p+0) - n * 0x1.110b46p-26) - n * 0x1.1a62633145c07p-54;
  const double square = r * r;
  const double s = r * polynomial64(square, kSin), c = polynomial64(square, kCos);
  const auto quarter = __builtin_bit_cast(uint64_t, t);
  const bool odd = quarter & 1;
  const double a = odd ? s : c, b = odd ? c : s;
  cos = float(__builtin_bit_cast(double, __builtin_bit_cast(uint64_t, a) ^ (((quarter + 1) & 2) << 62)));
  sin = float(__builtin_bit_cast(double, __builtin_bit_cast(uint64_t, b) ^ ((quarter & 2) << 62)));
}

template <class V>
void rope_frequencies(double theta, const float* factors, int32_t rotary, double* out) noexcept {
  const double log_theta = log64(theta);
  const int32_t pairs = rotary / 2;
  for (int32_t i = 0; i < pairs; ++i) out[i] = exp64(-(double(2 * i) / double(rotary) * log_theta));
  if (factors) {
    for (int32_t i = 0; i < pairs; ++i) out[i] = out[i] / double(factors[i]);
  }
}

template <class V>
void rope_angles(double position, const double* frequencies, int32_t pairs, bool interleaved, float* cos,
                 float* sin) noexcept {
  int32_t filled = pairs;
  if (!interleaved) {
    for (int32_t i = 0; i < pairs; ++i) cos_sin64(position * frequencies[i], cos[i], sin[i]);
  } else {
    for (int32_t first = 0; first < pairs; first += 16) {
      float c[16] = {}, s[16] = {};
      const int32_t count = pairs - first < 16 ? pairs - first : 16;
      for (int32_t i = 0; i < count; ++i) cos_sin64(position * frequencies[first + i], c[i], s[i]);
      for (int32_t i = 0; i < count; ++i) {
        cos[2 * (first + i)] = cos[2 * (first + i) + 1] = c[i];
        sin[2 * (first + i)] = -s[i];
        sin[2 * (first + i) + 1] = s[i];
      }
    }
    filled = 2 * pairs;
  }
  for (; filled % 16; ++filled) cos[filled] = sin[filled] = 0.0f;
}

template <class V>
KVANT_INLINE void rotate_halves(const RopeJob& job, const float* x, float* out) {
  constexpr int kLanes = V::kLanes;
  const int32_t pairs = job.rotary / 2;
  const auto run = [&](int32_t i, const float* x0, const float* x1, float* y0, float* y1) {
    const auto c = V::load(job.cos + i), s = V::load(job.sin + i);
    const auto a = V::load(x0), b = V::load(x1);
    V::store(y0, canonical<V>(V::fma(a, c, V::neg(b * s))));
    V::store(y1, canonical<V>(V::fma(b, c, a * s)));
  };
  int32_t i = 0;
  for (; i + kLanes <= pairs; i += kLanes) run(i, x + i, x + pairs + i, out + i, out + pairs + i);
  if (i == pairs) return;
  alignas(64) float a[kLanes] = {}, b[kLanes] = {};
  const size_t rest = size_t(pairs - i) * 4;
  memcpy(a, x + i, rest);
  memcpy(b, x + pairs + i, rest);
  run(i, a, b, a, b);
  memcpy(out + i, a, rest);
  memcpy(out + pairs + i, b, rest);
}

template <class V>
KVANT_INLINE void rotate_neighbours(const RopeJob& job, const float* x, float* out) {
  constexpr int kLanes = V::kLanes;
  if constexpr (kLanes == 1) {
    for (int32_t i = 0; i < job.rotary; i += 2) {
      const auto a = V::load(x + i), b = V::load(x + i + 1);
      V::store(out + i, canonical<V>(V::fma(a, V::load(job.cos + i), b * V::load(job.sin + i))));
      V::store(out + i + 1, canonical<V>(V::fma(b, V::load(job.cos + i + 1), a * V::load(job.sin + i + 1))));
    }
  } else {
    const auto run = [&](int32_t i, const float* in, float* to) {
      const auto a = V::load(in);
      V::store(to, canonical<V>(V::fma(a, V::load(job.cos + i), V::swap_pairs(a) * V::load(job.sin + i))));
    };
    int32_t i = 0;
    for (; i + kLanes <= job.rotary; i += kLanes) run(i, x + i, out + i);
    if (i == job.rotary) return;
    alignas(64) float a[kLanes] = {};
    memcpy(a, x + i, size_t(job.rotary - i) * 4);
    run(i, a, a);
    memcpy(out + i, a, size_t(job.rotary - i) * 4);
  }
}

template <class V>
void rope(const RopeJob& job) noexcept {
  const float* x = job.x;
  float* out = job.out;
  for (int32_t head = 0; head < job.heads; ++head, x += job.stride, out += job.out_stride) {
    if (job.interleaved) {
      rotate_neighbours<V>(job, x, out);
    } else {
      rotate_halves<V>(job, x, out);
    }
    if (out != x) memcpy(out + job.rotary, x + job.rotary, size_t(job.dim - job.rotary) * 4);
  }
}

}  // namespace kvant
