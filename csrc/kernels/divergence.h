// How far one row of logits is from another: KL divergence, log-sums of exponentials, largest logits.
// The twin, reference/divergence.py, has the definition. Each block is read once from memory and twice from
// the cache: for the largest logit of either row, and for the sums, in units of 2^N of that logit.
#pragma once

#include "kernels/ops.h"

namespace kvant {

constexpr int64_t kDivergenceBlock = 2048;
// The largest logit of a row must lie within; what is below kLowestLogit counts as it.
constexpr double kMostLogit = 0x1p19;
constexpr float kLowestLogit = -0x1p20f;
constexpr double kLn2 = 0x1.62e42fefa39efp-1;

struct Largest {
  float logit;
  int64_t at;
};

constexpr float kInfinity = __builtin_inff();
constexpr Largest kNone = {-kInfinity, 0};

// N of a block: the logit over ln 2, rounded.
KVANT_INLINE int exponent_of(float logit) {
  constexpr double kBound = -double(kLowestLogit);
  double x = double(logit) > -kBound ? double(logit) : -kBound;
  x = x < kBound ? x : kBound;
  return int((x * 0x1.71547652b82fep+0 + kRound64) - kRound64);
}

// Sums over a row or a part of it. The first two treat both rows alike; weight is the sum of e^p to some bits
// more, between that of e^p (p - q).
struct DivergenceSums {
  int base_exponent, test_exponent;
  double base, test, weight, between;
};

// 2^n for n <= 0; 0 where that is no normal number.
KVANT_INLINE double power_of_two(int n) {
  return n < -1022 ? 0.0 : __builtin_bit_cast(double, uint64_t(n + 1023) << 52);
}

KVANT_INLINE void merge(DivergenceSums& all, const DivergenceSums& part) {
  const int p = all.base_exponent > part.base_exponent ? all.base_exponent : part.base_exponent;
  const int q = all.test_exponent > part.test_exponent ? all.test_exponent : part.test_exponent;
  double old = power_of_two(all.base_exponent - p), fresh = power_of_two(part.base_exponent - p);
  all.base = all.base * old + part.base * fresh;
  all.weight = all.weight * old + part.weight * fresh;
  all.between = all.between * old + part.between * fresh;
  old = power_of_two(all.test_exponent - q);
  fresh = power_of_two(part.test_exponent - q);
  all.test = all.test * old + part.test * fresh;
  all.base_exponent = p;
  all.test_exponent = q;
}

// Calls step(p, q) for sixteen elements after the other, the last ones filled up with -inf.
template <class V, class Step>
KVANT_INLINE void each_pair(const float* p, const float* q, int64_t count, Step&& step) {
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) step(p + i, q + i);
  if (i == count) return;
  alignas(64) float last[2][16];
  for (int l = 0; l < 16; ++l) {
    last[0][l] = i + l < count ? p[i + l] : -kInfinity;
    last[1][l] = i + l < count ? q[i + l] : -kInfinity;
  }
  step(last[0], last[1]);
}

KVANT_INLINE void raise(Largest& largest, float logit, const float* x, int64_t first) {
  if (!(logit > largest.logit)) return;
  largest.logit = logit;
  largest.at = first;
  while (*x != logit) ++x, ++largest.at;
}

template <class V>
KVANT_INLINE float largest16(const Sixteen<V>& all) {
  return reduce16<V>(all, [](float a, float b) { return a > b ? a : b; });
}

// The largest logits, NaN passed over; and whether q excludes, with -inf, what p does not.
template <class V>
KVANT_INLINE bool find_largest(const float* p, const float* q, int64_t count, float& base, float& test) {
  Sixteen<V> most_p = splat16<V>(-kInfinity), most_q = most_p, least_q = splat16<V>(0.0f);
  each_pair<V>(p, q, count, [&](const float* a, const float* b) {
    each_piece<V>([&](int i, int first) {
      const auto y = V::load(b + first);
      most_p.v[i] = V::max(V::load(a + first), most_p.v[i]);
      most_q.v[i] = V::max(y, most_q.v[i]);
      least_q.v[i] = V::min(y, least_q.v[i]);
    });
  });
  base = largest16<V>(most_p);
  test = largest16<V>(most_q);
  if (reduce16<V>(least_q, [](float a, float b) { return a < b ? a : b; }) != -kInfinity) return false;
  bool excludes = false;
  for (int64_t i = 0; i < count; ++i) excludes |= (q[i] == -kInfinity) & (p[i] != -kInfinity);
  return excludes;
}

// e^x / 2^n for x at most about n ln 2, rounded to f32, and what the last rounding took away.
template <class V>
KVANT_INLINE void exp_relative(typename V::F x, int n, typename V::F& high, typename V::F& low) {
  const auto one = V::splat(1.0f);
  typename V::F t;
  const auto r = reduce_exponent<V>(x, t);
  const auto y = polynomial<V>(r, kExpTerms);
  high = V::fma(r, y, one);
  low = V::fma(r, y, one - high);
  // Where 2^-126 or less is left of 2^(x / ln 2 - n), nothing is.
  t = V::max(t, V::splat(12582912.0f + float(n)));
  const auto power = V::from_bits((V::bits(t) - V::splat_i(n)).template shl<23>());
  high = high * power;
  low = low * power;
}

KVANT_INLINE double halve(double (&lane)[16]) {
  for (int half = 8; half > 0; half /= 2) {
    for (int l = 0; l < half; ++l) lane[l] += lane[l + half];
  }
  return lane[0];
}

template <class V>
KVANT_INLINE DivergenceSums sum_block(const float* p, const float* q, int64_t count, int np, int nq) {
  double base[16] = {}, test[16] = {}, weight[16] = {}, between[16] = {};
  const auto lowest = V::splat(kLowestLogit);
  each_pair<V>(p, q, count, [&](const float* a, const float* b) {
    alignas(64) float x[16], y[16], high[16], low[16], other[16];
    each_piece<V>([&](int, int first) {
      const auto bounded_p = V::max(lowest, V::load(a + first)), bounded_q = V::max(lowest, V::load(b + first));
      typename V::F h, l;
      exp_relative<V>(bounded_p, np, h, l);
      V::store(x + first, bounded_p);
      V::store(high + first, h);
      V::store(low + first, l);
      exp_relative<V>(bounded_q, nq, h, l);
      V::store(y + first, bounded_q);
      V::store(other + first, h);
    });
    for (int l = 0; l < 16; ++l) {
      const double w = double(high[l]) + double(low[l]);
      base[l] += double(high[l]);
      test[l] += double(other[l]);
      weight[l] += w;
      between[l] += w * (double(x[l]) - double(y[l]));
    }
  });
  return {np, nq, halve(base), halve(test), halve(weight), halve(between)};
}

template <class V>
void divergence(const float* p, const float* q, int64_t count, RowDivergence& out) noexcept {
  const double nan = __builtin_bit_cast(double, uint64_t(0x7ff8) << 48);
  Largest base = kNone, test = kNone;
  bool excludes = false;
  DivergenceSums all = {};
  for (int64_t first = 0; first < count; first += kDivergenceBlock) {
    const int64_t width = count - first < kDivergenceBlock ? count - first : kDivergenceBlock;
    float most_p, most_q;
    excludes |= find_largest<V>(p + first, q + first, width, most_p, most_q);
    raise(base, most_p, p + first, first);
    raise(test, most_q, q + first, first);
    const DivergenceSums block =
        sum_block<V>(p + first, q + first, width, exponent_of(most_p), exponent_of(most_q));
    if (first == 0) {
      all = block;
    } else {
      merge(all, block);
    }
  }
  const auto log_sum = [&](const Largest& largest, int exponent, double sum) {
    const bool inside = __builtin_fabs(double(largest.logit)) <= kMostLogit && sum == sum;
    return inside ? double(exponent) * kLn2 + log64(sum) : nan;
  };
  out.base_lse = log_sum(base, all.base_exponent, all.base);
  out.test_lse = log_sum(test, all.test_exponent, all.test);
  out.base_top = base.at;
  out.test_top = test.at;
  double kl = all.between / all.weight + (out.test_lse - out.base_lse);
  // A divergence is not negative; rounding can make it so.
  if (kl < 0) kl = 0;
  if (excludes) kl = __builtin_inf();
  out.kl = out.base_lse == out.base_lse && out.test_lse == out.test_lse ? kl : nan;
}

}  // namespace kvant
