// exp, activations and a logarithm, sixteen lanes or one double at a time: additions, products, fma and division in one
// fixed order, so that every ISA and the NumPy twin (reference/ops.py) give the same bits.
//
// Errors, in units of the last place of the exact result, over every f32 where the result is normal:
// see docs/ops.md, which states what tests measure. A NaN goes through; its bits are those of the processor
// until canonical() makes them the one NaN of this library.
#pragma once

#include "kernels/kernels.h"

namespace kvant {

template <class V>
KVANT_INLINE typename V::F canonical(typename V::F x) {
  return V::select(x == x, x, V::splat(float_of(0x7fc00000u)));
}

// a0 + x * (a1 + x * ...), Horner's way.
template <class V, int kCount>
KVANT_INLINE typename V::F polynomial(typename V::F x, const float (&a)[kCount]) {
  auto y = V::splat(a[kCount - 1]);
  for (int i = kCount - 2; i >= 0; --i) y = V::fma(x, y, V::splat(a[i]));
  return y;
}

// (e^r - 1) / r for |r| <= ln 2 / 2.
constexpr float kExpTerms[] = {1.0f,           0x1.fffffcp-2f, 0x1.555492p-3f,
                               0x1.5558b0p-5f, 0x1.12398ep-7f, 0x1.6a4d62p-10f};

// r of x = n ln 2 + r, |r| <= ln 2 / 2. Adding 2^23 + 2^22 + 127 - N rounds x / ln 2 to n and leaves n - N + 127,
// the exponent of 2^(n - N), in the low bits of t.
template <class V>
KVANT_INLINE typename V::F reduce_exponent(typename V::F x, int N, typename V::F& t) {
  const auto round = V::splat(12582912.0f + 127.0f - float(N));
  t = V::fma(x, V::splat(0x1.715476p+0f), round);
  const auto n = t - round;
  const auto r = V::fma(n, V::splat(-0x1.62e43p-1f), x);
  return V::fma(n, V::splat(0x1.05c61p-29f), r);
}

// e^x for x in [-88.2, 88.6] or NaN; 0 below -126.5 ln 2, infinity above 127.5 ln 2: an exponent of 0 makes
// zero, 255 infinity.
template <class V>
KVANT_INLINE typename V::F exp_inside(typename V::F x) {
  typename V::F t;
  const auto r = reduce_exponent<V>(x, 0, t);
  return V::fma(r, polynomial<V>(r, kExpTerms), V::splat(1.0f)) * V::from_bits(V::bits(t).template shl<23>());
}

// For x <= 0 or NaN. The bound is the first argument so that a NaN is kept.
template <class V>
KVANT_INLINE typename V::F exp_nonpositive(typename V::F x) {
  return exp_inside<V>(V::max(V::splat(-88.2f), x));
}

template <class V>
KVANT_INLINE typename V::F exp(typename V::F x) {
  return exp_inside<V>(V::min(V::splat(88.6f), V::max(V::splat(-88.2f), x)));
}

// Adding it rounds to a whole number, which then stands in the low bits.
constexpr double kRound64 = 0x1.8p52;

template <int kCount>
KVANT_INLINE double polynomial64(double x, const double (&a)[kCount]) {
  double y = a[kCount - 1];
  for (int i = kCount - 2; i >= 0; --i) y = y * x + a[i];
  return y;
}

// x is a positive normal number. log(2^e m) = e ln 2 + 2 atanh((m - 1) / (m + 1)), sqrt(1/2) <= m < sqrt(2).
KVANT_INLINE double log64(double x) {
  constexpr double kTerms[] = {1.0,        1.0 / 3.0,  1.0 / 5.0,  1.0 / 7.0,  1.0 / 9.0,  1.0 / 11.0,
                               1.0 / 13.0, 1.0 / 15.0, 1.0 / 17.0, 1.0 / 19.0, 1.0 / 21.0, 1.0 / 23.0};
  const auto word = __builtin_bit_cast(uint64_t, x);
  int exponent = int(word >> 52) - 1023;
  double m = __builtin_bit_cast(double, (word & 0xfffffffffffffu) | 0x3ff0000000000000u);
  if (m >= 0x1.6a09e667f3bcdp+0) {
    m = m * 0.5;
    ++exponent;
  }
  const double s = (m - 1.0) / (m + 1.0);
  return double(exponent) * 0x1.62e42fefa39efp-1 + (s + s) * polynomial64(s * s, kTerms);
}

struct Silu {
  template <class V>
  KVANT_INLINE typename V::F apply(typename V::F x) {
    return x / (V::splat(1.0f) + exp<V>(V::neg(x)));
  }
};

// 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) = x / (1 + exp(-2 sqrt(2 / pi) (x + 0.044715 x^3))).
struct GeluTanh {
  template <class V>
  KVANT_INLINE typename V::F apply(typename V::F x) {
    const auto slope = V::fma(x * x, V::splat(-0x1.2444f2p-4f), V::splat(-0x1.988454p+0f));
    return x / (V::splat(1.0f) + exp<V>(x * slope));
  }
};

// x Phi(x). For a = |x|, Phi(-a) = exp(-a^2 / 2) G(1 / (1 + c a)) with a polynomial G of degree 9, which keeps
// the relative error small far out; the part of a^2 that rounding lost is put back. Phi(a) = 1 - Phi(-a).
struct Gelu {
  template <class V>
  KVANT_INLINE typename V::F apply(typename V::F x) {
    constexpr float kTerms[] = {0x1.a984c2p-18f, 0x1.0f50a6p-3f,  0x1.13bc74p-3f, 0x1.ace3a0p-4f,  0x1.280fbep-3f,
                                -0x1.acb6fep-4f, 0x1.26c00cp-2f,  -0x1.4dbfb2p-2f, 0x1.3aea5cp-3f, -0x1.c10c64p-6f};
    const auto one = V::splat(1.0f), minus_half = V::splat(-0.5f), zero = V::splat(0.0f);
    // Beyond 14 all is zero; the bound comes first so that a NaN is kept.
    const auto a = V::min(V::splat(14.0f), V::abs(x));
    const auto square = a * a, lost = V::fma(a, a, V::neg(square));
    auto e = exp_nonpositive<V>(minus_half * square);
    e = V::fma(e, minus_half * lost, e);
    const auto tail = e * polynomial<V>(one / V::fma(a, V::splat(0x1.547ae2p-2f), one), kTerms);
    return V::select(x < zero, x * tail, V::fma(V::neg(a), tail, x));
  }
};

struct Relu {
  template <class V>
  KVANT_INLINE typename V::F apply(typename V::F x) {
    const auto zero = V::splat(0.0f);
    return V::select(x <= zero, zero, x);
  }
};

}  // namespace kvant
