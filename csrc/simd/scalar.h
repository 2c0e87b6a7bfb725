// The scalar ISA: one lane, plain C++. It is compiled without the auto-vectorizer, so
// that "scalar" is what it says, and it is the oracle of every other ISA.
#pragma once

#include <cstring>

#include "base/f16.h"
#include "simd/vec.h"

namespace kvant {
namespace {

struct Scalar {
  static constexpr int kParts = 1;
  static constexpr int kWidth = 1;
  static constexpr bool kHasTables = false;
  using F = float;
  using I = int32_t;
  using M = bool;

  KVANT_INLINE F splat(float x) { return x; }
  KVANT_INLINE F load(const float* x) { return *x; }
  KVANT_INLINE void store(float* x, F a) { *x = a; }
  KVANT_INLINE void stream(float* x, F a) { *x = a; }
  KVANT_INLINE void fence() {}
  KVANT_INLINE F load_i8(const int8_t* x) { return float(*x); }
  KVANT_INLINE F load_f16(const uint16_t* x) { return f16_to_f32(*x); }
  KVANT_INLINE void store_f16(uint16_t* x, F a) { *x = f32_to_f16(a); }
  KVANT_INLINE F load_bf16(const uint16_t* x) { return bf16_to_f32(*x); }
  KVANT_INLINE F round_to_f16(F a) { return f16_to_f32(f32_to_f16(a)); }

  KVANT_INLINE F add(F a, F b) { return a + b; }
  KVANT_INLINE F sub(F a, F b) { return a - b; }
  KVANT_INLINE F mul(F a, F b) { return a * b; }
  KVANT_INLINE F div(F a, F b) { return a / b; }
  KVANT_INLINE F sqrt(F a) { return __builtin_sqrtf(a); }
  KVANT_INLINE F min(F a, F b) { return a < b ? a : b; }
  KVANT_INLINE F max(F a, F b) { return a > b ? a : b; }
  KVANT_INLINE F abs(F a) { return __builtin_fabsf(a); }
  KVANT_INLINE F neg(F a) { return float_of(bits_of(a) ^ 0x80000000u); }
  KVANT_INLINE F copysign(F a, F b) { return __builtin_copysignf(a, b); }
  KVANT_INLINE M lt(F a, F b) { return a < b; }
  KVANT_INLINE M le(F a, F b) { return a <= b; }
  KVANT_INLINE M eq(F a, F b) { return a == b; }
  KVANT_INLINE F select(M m, F a, F b) { return m ? a : b; }

  KVANT_INLINE M mask_and(M a, M b) { return a && b; }
  KVANT_INLINE M mask_or(M a, M b) { return a || b; }
  KVANT_INLINE M mask_not(M a) { return !a; }
  KVANT_INLINE bool any(M a) { return a; }

  KVANT_INLINE I isplat(int32_t x) { return x; }
  KVANT_INLINE I iload(const int32_t* x) { return *x; }
  KVANT_INLINE void istore(int32_t* x, I a) { *x = a; }
  KVANT_INLINE I iadd(I a, I b) { return I(uint32_t(a) + uint32_t(b)); }
  KVANT_INLINE I isub(I a, I b) { return I(uint32_t(a) - uint32_t(b)); }
  KVANT_INLINE I iand(I a, I b) { return a & b; }
  KVANT_INLINE I ior(I a, I b) { return a | b; }
  KVANT_INLINE I imin(I a, I b) { return a < b ? a : b; }
  KVANT_INLINE I imax(I a, I b) { return a > b ? a : b; }
  KVANT_INLINE M ieq(I a, I b) { return a == b; }
  KVANT_INLINE I iselect(M m, I a, I b) { return m ? a : b; }
  template <int S> KVANT_INLINE I shl(I a) { return I(uint32_t(a) << S); }
  template <int S> KVANT_INLINE I shr(I a) { return I(uint32_t(a) >> S); }
  KVANT_INLINE F to_f32(I a) { return float(a); }
  KVANT_INLINE I trunc(F a) { return a >= -0x1p31f && a < 0x1p31f ? I(a) : INT32_MIN; }
  KVANT_INLINE I bits(F a) { return I(bits_of(a)); }
  KVANT_INLINE F from_bits(I a) { return float_of(uint32_t(a)); }

  template <class Row>
  KVANT_INLINE void transpose(Row&& row, int first, float* out) {
    memcpy(out, row(0) + first, 16 * sizeof(float));
  }

  KVANT_INLINE I largest_of_each(const I (&rows)[1]) { return rows[0]; }
  KVANT_INLINE void store_bytes(uint8_t* out, const I (&a)[1]) { *out = uint8_t(a[0]); }

  KVANT_INLINE void store_quads(uint8_t* out, int, I a, I b, I c, I d) {
    const I words[4] = {a, b, c, d};
    memcpy(out, words, 16);
  }

  KVANT_INLINE void lookup(const int8_t* table, int8_t* codes, int count) {
    for (int i = 0; i < count; ++i) codes[i] = table[codes[i]];
  }

  // For kernels/probe.h: a product of four bytes as a program without vectors computes it.
  static constexpr int kProbeChains = 4;
  KVANT_INLINE void probe_hide(I& a) { asm volatile("" : "+r"(a)); }
  KVANT_INLINE I probe_dot(I sum, I a, I b) {
    probe_hide(a);
    for (int i = 0; i < 32; i += 8) sum = iadd(sum, I(int8_t(a >> i)) * I(int8_t(b >> i)));
    return sum;
  }
  KVANT_INLINE F probe_fma(F sum, F a, F b) { return __builtin_fmaf(a, b, sum); }
  KVANT_INLINE void probe_hide(F& a) { asm volatile("" : "+m"(a)); }
};

}  // namespace
}  // namespace kvant
