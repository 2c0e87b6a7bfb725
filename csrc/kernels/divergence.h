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

// The largest logit of a row so far, and the block it is in.
struct Largest {
  float logit;
  int64_t block;
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

// Calls step(p, q, i) for the sixteen elements from i on, one after the other, the last ones filled up with -inf.
template <class V, class Step>
KVANT_INLINE void each_pair(const float* p, const float* q, int64_t count, Step&& step) {
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) step(p + i, q + i, i);
  if (i == count) return;
  alignas(64) float last[2][16];
  for (int l = 0; l < 16; ++l) {
    last[0][l] = i + l < count ? p[i + l] : -kInfinity;
    last[1][l] = i + l < count ? q[i + l] : -kInfinity;
  }
  step(last[0], last[1], i);
}

// Where the first of the largest stands, which is in the block from `first` on, or nowhere.
template <class V>
KVANT_INLINE int64_t find(float logit, const float* x, int64_t first, int64_t count) {
  if (logit == -kInfinity) return 0;
  int64_t i = first;
  const auto wanted = V::splat(logit);
  while (i + V::kLanes <= count && !V::any(V::load(x + i) == wanted)) i += V::kLanes;
  while (x[i] != logit) ++i;
  return i;
}

// Running extremes, NaN passed over.
template <class V>
struct Extremes {
  Sixteen<V> most_p, most_q, least_q;

  KVANT_MEMBER void take(const float* p, const float* q) {
    each_piece<V>([&](int i, int first) {
      const auto y = V::load(q + first);
      most_p.v[i] = V::max(V::load(p + first), most_p.v[i]);
      most_q.v[i] = V::max(y, most_q.v[i]);
      least_q.v[i] = V::min(y, least_q.v[i]);
    });
  }
};

// The largest logits; and whether q excludes, with -inf, what p does not. Two sets of extremes take turns, because
// one would wait for itself.
template <class V>
KVANT_INLINE bool find_largest(const float* p, const float* q, int64_t count, float& base, float& test) {
  const Sixteen<V> lowest = splat16<V>(-kInfinity), zero = splat16<V>(0.0f);
  Extremes<V> even = {lowest, lowest, zero}, odd = even;
  int64_t i = 0;
  for (; i + 32 <= count; i += 32) {
    even.take(p + i, q + i);
    odd.take(p + i + 16, q + i + 16);
  }
  each_pair<V>(p + i, q + i, count - i, [&](const float* a, const float* b, int64_t) { even.take(a, b); });
  each_piece<V>([&](int piece, int) {
    even.most_p.v[piece] = V::max(even.most_p.v[piece], odd.most_p.v[piece]);
    even.most_q.v[piece] = V::max(even.most_q.v[piece], odd.most_q.v[piece]);
    even.least_q.v[piece] = V::min(even.least_q.v[piece], odd.least_q.v[piece]);
  });
  const auto larger = [](float a, float b) { return a > b ? a : b; };
  base = reduce16<V>(even.most_p, larger);
  test = reduce16<V>(even.most_q, larger);
  if (reduce16<V>(even.least_q, [](float a, float b) { return a < b ? a : b; }) != -kInfinity) return false;
  bool excludes = false;
  for (i = 0; i < count; ++i) excludes |= (q[i] == -kInfinity) & (p[i] != -kInfinity);
  return excludes;
}

// e^x / 2^n for x at most about n ln 2, rounded to f32, and what the last rounding took away.
template <class V>
KVANT_INLINE void exp_relative(typename V::F x, int n, typename V::F& high, typename V::F& low) {
  const auto one = V::splat(1.0f);
  typename V::F t;
  const auto r = reduce_exponent<V>(x, n, t);
  const auto y = polynomial<V>(r, kExpTerms);
  high = V::fma(r, y, one);
  low = V::fma(r, y, one - high);
  // Where 2^-126 or less is left of 2^(x / ln 2 - n), nothing is.
  t = V::max(t, V::splat(12582912.0f));
  const auto power = V::from_bits(V::bits(t).template shl<23>());
  high = high * power;
  low = low * power;
}

KVANT_INLINE double halve(double (&lane)[16]) {
  for (int half = 8; half > 0; half /= 2) {
    for (int l = 0; l < half; ++l) lane[l] += lane[l + half];
  }
  return lane[0];
}

// What the f64 sums need of a strip of logits. It goes through memory because widening what lies there is one
// operation, and what is in a register several. What the rounding of e^p took away is so small that f32 will do
// for its own sums, of it and of it times p - q.
template <class V>
struct Strip {
  static constexpr int kLength = 256;
  alignas(64) float p[kLength], q[kLength], base[kLength], test[kLength];
  Sixteen<V> low, low_between;
};

template <class V>
KVANT_INLINE void fill_strip(const float* p, const float* q, int64_t count, int np, int nq, Strip<V>& strip) {
  const auto lowest = V::splat(kLowestLogit);
  Sixteen<V> sum = splat16<V>(0.0f), between = sum;
  each_pair<V>(p, q, count, [&](const float* a, const float* b, int64_t i) {
    // The next block comes from memory meanwhile; behind the row there is another, or nothing that matters.
    __builtin_prefetch(p + i + kDivergenceBlock);
    __builtin_prefetch(q + i + kDivergenceBlock);
    each_piece<V>([&](int piece, int first) {
      const auto x = V::max(lowest, V::load(a + first)), y = V::max(lowest, V::load(b + first));
      typename V::F base, low, test, rest;
      exp_relative<V>(x, np, base, low);
      exp_relative<V>(y, nq, test, rest);
      sum.v[piece] = sum.v[piece] + low;
      between.v[piece] = V::fma(low, x - y, between.v[piece]);
      V::store(strip.p + i + first, x);
      V::store(strip.q + i + first, y);
      V::store(strip.base + i + first, base);
      V::store(strip.test + i + first, test);
    });
  });
  strip.low = sum;
  strip.low_between = between;
}

struct DivergenceLanes {
  double base[16], test[16], between[16], low[16], low_between[16];
};

// As many lanes at a time as have their sums in registers.
template <class V>
KVANT_INLINE void add_strip(const Strip<V>& strip, int width, DivergenceLanes& lanes) {
  using N = typename V::Native;
  using D = typename N::D;
  constexpr int kWidth = sizeof(D) / sizeof(double), kCount = kWidth < 4 ? 4 : 16 / kWidth;
  for (int first = 0; first < 16; first += kCount * kWidth) {
    D base[kCount], test[kCount], between[kCount];
    memcpy(base, lanes.base + first, sizeof base);
    memcpy(test, lanes.test + first, sizeof test);
    memcpy(between, lanes.between + first, sizeof between);
    for (int i = first; i < width; i += 16) {
      each<kCount>([&]<int k>() KVANT_LAMBDA {
        const int at = i + k * kWidth;
        const D weight = N::widen(strip.base + at);
        base[k] = base[k] + weight;
        test[k] = test[k] + N::widen(strip.test + at);
        between[k] = between[k] + weight * (N::widen(strip.p + at) - N::widen(strip.q + at));
      });
    }
    memcpy(lanes.base + first, base, sizeof base);
    memcpy(lanes.test + first, test, sizeof test);
    memcpy(lanes.between + first, between, sizeof between);
  }
}

template <class V>
KVANT_INLINE void add_wide(const Sixteen<V>& all, double (&sum)[16]) {
  alignas(64) float lane[16];
  each_piece<V>([&](int i, int first) { V::store(lane + first, all.v[i]); });
  for (int l = 0; l < 16; ++l) sum[l] += double(lane[l]);
}

template <class V>
KVANT_INLINE DivergenceSums sum_block(const float* p, const float* q, int64_t count, int np, int nq) {
  DivergenceLanes lanes = {};
  Strip<V> strip;
  for (int64_t first = 0; first < count; first += Strip<V>::kLength) {
    const int width = count - first < Strip<V>::kLength ? int(count - first) : Strip<V>::kLength;
    fill_strip<V>(p + first, q + first, width, np, nq, strip);
    add_strip<V>(strip, width, lanes);
    add_wide<V>(strip.low, lanes.low);
    add_wide<V>(strip.low_between, lanes.low_between);
  }
  const double base = halve(lanes.base);
  return {np, nq, base, halve(lanes.test), base + halve(lanes.low), halve(lanes.between) + halve(lanes.low_between)};
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
    if (most_p > base.logit) base = {most_p, first};
    if (most_q > test.logit) test = {most_q, first};
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
  out.base_top = find<V>(base.logit, p, base.block, count);
  out.test_top = find<V>(test.logit, q, test.block, count);
  double kl = all.between / all.weight + (out.test_lse - out.base_lse);
  // A divergence is not negative; rounding can make it so.
  if (kl < 0) kl = 0;
  if (excludes) kl = __builtin_inf();
  out.kl = out.base_lse == out.base_lse && out.test_lse == out.test_lse ? kl : nan;
}

}  // namespace kvant
