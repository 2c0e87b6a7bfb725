// Pages of floats: keys [dim][token], values [token][width], the width that of whole vectors.
#pragma once

#include "kernels/attend_kernels.h"

namespace kvant {

// Keys and values as floats of each type.
struct Halves {
  uint16_t bits;
};
struct Brains {
  uint16_t bits;
};

// Numbers of a value, and how far it is to the next token's and to the next sixteen of them.
struct Columns {
  int width, token, sixteen;
};

template <class V>
KVANT_INLINE typename V::F load_float(const float* x) {
  return V::load(x);
}
template <class V>
KVANT_INLINE typename V::F load_float(const Halves* x) {
  return V::load_f16(&x->bits);
}
template <class V>
KVANT_INLINE typename V::F load_float(const Brains* x) {
  return V::load_bf16(&x->bits);
}

// Whether all lanes are finite as halves; if so, they are stored.
template <class V>
KVANT_INLINE bool store_halves(typename V::F x, Halves* out) {
  // Half way between the largest half and what would follow.
  if (V::any(!(V::abs(x) < V::splat(65520.0f)))) return false;
  V::store_f16(&out->bits, x);
  return true;
}

// Rows of floats into a page. False if one is too large for the type.
template <class V, class T>
KVANT_INLINE bool round_numbers(const float* x, int count, T* out) {
  if constexpr (sizeof(T) == 4) {
    memcpy(out, x, size_t(count) * 4);
  } else {
    bool fits = true;
    for (int i = 0; i < count; ++i) {
      if constexpr (__is_same(T, Halves)) {
        while (i + V::kLanes <= count && store_halves<V>(V::load(x + i), out + i)) i += V::kLanes;
        if (i >= count) break;
      }
      const uint16_t bits = __is_same(T, Halves) ? f32_to_f16(x[i]) : f32_to_bf16(x[i]);
      const bool fit = (bits & 0x7fff) < (__is_same(T, Halves) ? 0x7c00 : 0x7f80);
      // What is refused must not stay in a page.
      out[i].bits = fit ? bits : 0;
      fits = fits && fit;
    }
    return fits;
  }
  return true;
}

template <class V, class T>
bool put_keys(const float* x, int64_t stride, int rows, int dim, uint8_t* side, int token) noexcept {
  T* to = reinterpret_cast<T*>(side) + token;
  bool fits = true;
  for (int r = 0; r < rows; ++r, x += stride, ++to) {
    T numbers[kMostKvDim];
    fits = round_numbers<V>(x, dim, numbers) && fits;
    for (int d = 0; d < dim; ++d) to[d * kPageTokens] = numbers[d];
  }
  return fits;
}

template <class V, class T>
bool put_values(const float* x, int64_t stride, int rows, int dim, uint8_t* side, int token) noexcept {
  T* to = reinterpret_cast<T*>(side) + token * kv_width(dim);
  bool fits = true;
  for (int r = 0; r < rows; ++r, x += stride, to += kv_width(dim)) fits = round_numbers<V>(x, dim, to) && fits;
  return fits;
}

template <class T>
KVANT_INLINE float number_of(T x) {
  if constexpr (sizeof(T) == 4) return x;
  else return __is_same(T, Halves) ? f16_to_f32(x.bits) : bf16_to_f32(x.bits);
}

template <class V, class T>
void take_keys(const uint8_t* side, int token, int rows, int dim, float* out, int64_t stride) noexcept {
  const T* from = reinterpret_cast<const T*>(side) + token;
  for (int r = 0; r < rows; ++r, out += stride, ++from) {
    for (int d = 0; d < dim; ++d) out[d] = number_of(from[d * kPageTokens]);
  }
}

template <class V, class T>
void take_values(const uint8_t* side, int token, int rows, int dim, float* out, int64_t stride) noexcept {
  const T* from = reinterpret_cast<const T*>(side) + token * kv_width(dim);
  for (int r = 0; r < rows; ++r, out += stride, from += kv_width(dim)) {
    for (int d = 0; d < dim; ++d) out[d] = number_of(from[d]);
  }
}

}  // namespace kvant
