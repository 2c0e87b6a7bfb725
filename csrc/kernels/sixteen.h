// Sixteen floats in the lanes of any ISA, so that what is said of sixteen partial sums is said once: upper half
// added to the lower, repeatedly, until one is left.
#pragma once

#include "kernels/math.h"

namespace kvant {

// Sixteen floats in the lanes of this ISA.
template <class V>
struct Sixteen {
  static constexpr int kPieces = 16 / V::kLanes;
  typename V::F v[kPieces];
};

template <class V, class Step>
KVANT_INLINE void each_piece(Step&& step) {
  for (int p = 0; p < Sixteen<V>::kPieces; ++p) step(p, p * V::kLanes);
}

template <class V>
KVANT_INLINE Sixteen<V> splat16(float x) {
  Sixteen<V> all;
  each_piece<V>([&](int p, int) { all.v[p] = V::splat(x); });
  return all;
}

// Lanes are combined half with half until one is left.
template <class V, class Combine>
KVANT_INLINE float reduce16(const Sixteen<V>& all, Combine&& combine) {
  alignas(64) float lane[16];
  each_piece<V>([&](int p, int first) { V::store(lane + first, all.v[p]); });
  for (int half = 8; half > 0; half /= 2) {
    for (int l = 0; l < half; ++l) lane[l] = combine(lane[l], lane[l + half]);
  }
  return lane[0];
}

template <class V>
KVANT_INLINE float sum16(const Sixteen<V>& all) {
  return reduce16<V>(all, [](float a, float b) { return a + b; });
}

}  // namespace kvant
