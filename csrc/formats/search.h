// How ggml looks for good scales, with one sub-block per lane.
//
// Every search is a sequence of float sums over the elements of a sub-block, in order; lanes are
// independent, so sixteen of them run side by side and each gives the bits a scalar loop would.
// Rules kept exactly: strict comparisons, the first of equal maxima wins, true division, no fma.
// The names say what is fitted; the algorithms are ggml's make_*_quants.
#pragma once

#include "formats/format.h"

namespace kvant {

constexpr float kGroupMaxEps = 1e-15f;

template <class V>
struct Search {
  using F = typename V::F;
  using I = typename V::I;
  using M = typename V::M;

  KVANT_INLINE F zero() { return V::splat(0.0f); }

  // Round to nearest, ties to even; |v| < 2^22.
  KVANT_INLINE F nearest(F v) {
    const F magic = V::splat(12582912.0f);
    return (v + magic) - magic;
  }

  // The same for every v, as ggml's bit trick has it: outside |v| < 2^22 it wraps, and an
  // infinity or a NaN gives -2^22 or 0. Denormal blocks reach those.
  KVANT_INLINE I nearest_int(F v) {
    return (V::bits(v + V::splat(12582912.0f)) & V::splat_i(0x7fffff)) - V::splat_i(0x400000);
  }

  KVANT_INLINE I clamp(I l, int low, int high) {
    return V::imax(V::imin(l, V::splat_i(high)), V::splat_i(low));
  }

  // What storing in eight signed bits leaves.
  KVANT_INLINE I signed_byte(I l) {
    return ((l + V::splat_i(128)) & V::splat_i(255)) - V::splat_i(128);
  }

  // roundf: half away from zero, as an integer with x86's INT32_MIN for what does not fit.
  KVANT_INLINE I round_away(F v) { return V::trunc(v + V::copysign(V::splat(0x1.fffffep-2f), v)); }

  struct Extreme {
    F abs, value;  // the largest magnitude and its signed value; the first one wins
  };

  // Largest magnitude of n elements, n a multiple of 4: four chains, since order is free. NaN is
  // passed over.
  KVANT_INLINE F largest(const float* x, int n) {
    F m[4] = {zero(), zero(), zero(), zero()};
    for (int i = 0; i < n; i += 4) {
      for (int k = 0; k < 4; ++k) m[k] = V::max(V::abs(at<V>(x, i + k)), m[k]);
    }
    return V::max(V::max(m[0], m[1]), V::max(m[2], m[3]));
  }

  KVANT_INLINE Extreme extreme(const float* x, int n) {
    Extreme e = {largest(x, n), zero()};
    // Going backwards, the first of equals is the one that stays.
    for (int i = n - 1; i >= 0; --i) {
      const F v = at<V>(x, i);
      e.value = V::select(V::abs(v) == e.abs, v, e.value);
    }
    // A block of zeros has the value +0 whatever their signs.
    e.value = V::select(e.abs > zero(), e.value, zero());
    return e;
  }

  KVANT_INLINE F sum_of_squares(const float* x, int n) {
    F sum = zero();
    for (int i = 0; i < n; ++i) sum = sum + at<V>(x, i) * at<V>(x, i);
    return sum;
  }

  // weight = importance * sqrt(sigma2 + x^2); returns the sum of the weights.
  KVANT_INLINE F importance_weights(const float* x, const float* importance, F sigma2, int n, float* weight) {
    F sum = zero();
    for (int i = 0; i < n; ++i) {
      const F v = at<V>(x, i), w = at<V>(importance, i) * V::sqrt(sigma2 + v * v);
      put<V>(weight, i, w);
      sum = sum + w;
    }
    return sum;
  }

  // ---- symmetric: x ~ scale * l, l in [-nmax, nmax - 1]                       (make_qx_quants)

  struct Symmetric {
    F scale, iscale;
    M dead;  // all zero: scale 0, codes 0
    KVANT_MEMBER I code(F v, int nmax) const {
      const I l = clamp(nearest_int(iscale * v), -nmax, nmax - 1) + V::splat_i(nmax);
      return V::select(dead, V::splat_i(0), l);
    }
  };

  // kWild: x may hold infinities and NaN, as scales found with overflowing weights do.
  template <int n, int nmax, bool kWild = false>
  KVANT_INLINE Symmetric symmetric(const float* x, const float* weight) {
    Tile<V, n> wx;
    const Extreme e = extreme(x, n);
    Symmetric s;
    s.dead = e.abs < V::splat(kGroupMaxEps);
    const F max = V::select(s.dead, V::splat(1.0f), e.value);
    for (int i = 0; i < n; ++i) put<V>(wx, i, at<V>(weight, i) * at<V>(x, i));

    s.iscale = V::splat(-float(nmax)) / max;
    s.scale = zero();
    F best = zero();
    for (int step = 0; step < 19; ++step) {
      // Step 0 is the plain scale; then -9 .. 9 without 0.
      const int is = step == 0 ? 0 : step <= 9 ? step - 10 : step - 9;
      const F iscale = step == 0 ? s.iscale : V::splat(-(float(nmax) + 0.1f * float(is))) / max;
      F sumlx = zero(), suml2 = zero();
      for (int i = 0; i < n; ++i) {
        const F scaled = iscale * at<V>(x, i);
        F l;
        if constexpr (kWild) {
          l = V::to_f32(clamp(nearest_int(scaled), -nmax, nmax - 1));
        } else {
          l = V::max(V::splat(-float(nmax)), V::min(V::splat(float(nmax - 1)), nearest(scaled)));
        }
        sumlx = sumlx + at<V>(wx, i) * l;
        suml2 = suml2 + at<V>(weight, i) * l * l;
      }
      if (step == 0) {
        s.scale = V::select(suml2 != zero(), sumlx / suml2, zero());
        best = s.scale * sumlx;
      } else {
        const M better = (suml2 > zero()) & (sumlx * sumlx > best * suml2);
        if (V::any(better)) {
          const F scale = sumlx / suml2;
          s.scale = V::select(better, scale, s.scale);
          best = V::select(better, scale * sumlx, best);
          s.iscale = V::select(better, iscale, s.iscale);
        }
      }
    }
    s.scale = V::select(s.dead, zero(), s.scale);
    return s;
  }

  // ---- affine: x ~ scale * l - min, l in [0, nmax], min >= 0      (make_qkx2_quants, _qkx3_)

  struct Affine {
    F scale, min;
    F code_iscale, code_min;  // the grid of the accepted codes
    M dead;
    KVANT_MEMBER I code(F v, int nmax) const {
      const I l = clamp(nearest_int(code_iscale * (v - code_min)), 0, nmax);
      return V::select(dead, V::splat_i(0), l);
    }
  };

  struct AffineSums {
    F l, l2, xl;
  };

  template <int n, int nmax, bool kWild>
  KVANT_INLINE AffineSums affine_codes(const float* x, const float* weight, F iscale, F min, float* codes) {
    AffineSums s = {zero(), zero(), zero()};
    for (int i = 0; i < n; ++i) {
      const F v = at<V>(x, i), w = at<V>(weight, i);
      const F scaled = iscale * (v - min);
      F l;
      if constexpr (kWild) {
        l = V::to_f32(clamp(nearest_int(scaled), 0, nmax));
      } else {
        l = V::max(zero(), V::min(V::splat(float(nmax)), nearest(scaled)));
      }
      put<V>(codes, i, l);
      const F wl = w * l;
      s.l = s.l + wl;
      s.l2 = s.l2 + wl * l;
      s.xl = s.xl + wl * v;
    }
    return s;
  }

  template <int n, bool kAbsolute>
  KVANT_INLINE F affine_error(const float* x, const float* weight, const float* codes, F scale, F min) {
    F error = zero();
    for (int i = 0; i < n; ++i) {
      const F diff = scale * at<V>(codes, i) + min - at<V>(x, i);
      error = error + at<V>(weight, i) * (kAbsolute ? V::abs(diff) : diff * diff);
    }
    return error;
  }

  template <int n, int nmax, bool kAbsolute>
  KVANT_INLINE Affine affine(const float* x, const float* weight, float rmin, float rdelta, int nstep) {
    Tile<V, n> codes;
    F low = at<V>(x, 0), high = low, sum_w = at<V>(weight, 0), sum_x = sum_w * low;
    for (int i = 1; i < n; ++i) {
      const F v = at<V>(x, i), w = at<V>(weight, i);
      low = V::min(v, low);
      high = V::max(v, high);
      sum_w = sum_w + w;
      sum_x = sum_x + w * v;
    }
    F min = V::select(low > zero(), zero(), low);
    Affine a;
    a.dead = high == min;
    a.scale = zero();
    a.code_iscale = zero();
    a.code_min = min;
    F best = zero();
    for (int step = -1; step <= nstep; ++step) {
      const float top = step < 0 ? float(nmax) : rmin + rdelta * float(step) + float(nmax);
      const F range = V::select(a.dead, V::splat(1.0f), high - min);
      const F iscale = V::splat(top) / range;
      const F bound = V::splat(4194303.0f);
      const M wild = !((V::abs(iscale * (low - min)) <= bound) & (V::abs(iscale * (high - min)) <= bound));
      const AffineSums s = V::any(wild) ? affine_codes<n, nmax, true>(x, weight, iscale, min, codes)
                                        : affine_codes<n, nmax, false>(x, weight, iscale, min, codes);
      if (step < 0) {
        a.scale = V::splat(1.0f) / iscale;
        a.code_iscale = iscale;
        best = affine_error<n, kAbsolute>(x, weight, codes, a.scale, min);
        continue;
      }
      const F determinant = sum_w * s.l2 - s.l * s.l;
      F scale = (sum_w * s.xl - sum_x * s.l) / determinant;
      F offset = (s.l2 * sum_x - s.l * s.xl) / determinant;
      const M positive = offset > zero();
      scale = V::select(positive, s.xl / s.l2, scale);
      offset = V::select(positive, zero(), offset);
      const F error = affine_error<n, kAbsolute>(x, weight, codes, scale, offset);
      const M better = (determinant > zero()) & (error < best) & !a.dead;
      if (V::any(better)) {
        best = V::select(better, error, best);
        a.scale = V::select(better, scale, a.scale);
        a.code_iscale = V::select(better, iscale, a.code_iscale);
        a.code_min = V::select(better, min, a.code_min);
        min = V::select(better, offset, min);
      }
    }
    a.scale = V::select(a.dead, zero(), a.scale);
    a.min = V::neg(min);
    return a;
  }

  // ---- unsigned: x ~ scale * l, l in [0, nmax], for scales and minima          (make_qp_quants)
  // Codes are stored in eight bits before they are bounded from below, as in ggml.

  template <int n, int nmax>
  KVANT_INLINE F positive(const F* x, const F* weight, I* codes) {
    const I byte = V::splat_i(255), top = V::splat_i(nmax);
    F max = zero();
    for (int i = 0; i < n; ++i) max = V::max(max, x[i]);
    const M dead = max < V::splat(kGroupMaxEps);
    max = V::select(dead, V::splat(1.0f), max);

    F iscale = V::splat(float(nmax)) / max;
    F scale = V::splat(1.0f) / iscale;
    F best = zero();
    for (int i = 0; i < n; ++i) {
      const F diff = x[i] - scale * V::to_f32(nearest_int(iscale * x[i]) & byte);
      best = best + weight[i] * diff * diff;
    }
    for (int is = -4; is <= 4; ++is) {
      if (is == 0) continue;
      const F iscale_is = V::splat(0.1f * float(is) + float(nmax)) / max;
      const F scale_is = V::splat(1.0f) / iscale_is;
      F mse = zero();
      for (int i = 0; i < n; ++i) {
        const F diff = x[i] - scale_is * V::to_f32(V::imin(nearest_int(iscale_is * x[i]), top));
        mse = mse + weight[i] * diff * diff;
      }
      const M better = mse < best;
      best = V::select(better, mse, best);
      iscale = V::select(better, iscale_is, iscale);
    }
    F sumlx = zero(), suml2 = zero();
    for (int i = 0; i < n; ++i) {
      const I l = V::imin(nearest_int(iscale * x[i]), top);
      const F fl = V::to_f32(l);
      codes[i] = l & byte;
      sumlx = sumlx + weight[i] * x[i] * fl;
      suml2 = suml2 + weight[i] * fl * fl;
    }
    for (int pass = 0; pass < 5; ++pass) {
      bool changed = false;
      for (int i = 0; i < n; ++i) {
        const F w = weight[i], wx = w * x[i], l = V::to_f32(codes[i]);
        F slx = sumlx - wx * l;
        F sl2 = suml2 - w * l * l;
        const I code = V::imin(nearest_int(x[i] * sl2 / slx), top);
        const F fl = V::to_f32(code);
        M take = (slx > zero()) & (sl2 > zero()) & !(code == codes[i]) & !dead;
        slx = slx + wx * fl;
        sl2 = sl2 + w * fl * fl;
        take = take & (slx * slx * suml2 > sumlx * sumlx * sl2);
        if (V::any(take)) {
          changed = true;
          codes[i] = V::select(take, code & byte, codes[i]);
          sumlx = V::select(take, slx, sumlx);
          suml2 = V::select(take, sl2, suml2);
        }
      }
      if (!changed) break;
    }
    for (int i = 0; i < n; ++i) codes[i] = V::select(dead, V::splat_i(0), codes[i]);
    return V::select(dead | !(suml2 > zero()), zero(), sumlx / suml2);
  }
};

}  // namespace kvant
