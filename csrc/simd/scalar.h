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
  using D = double;

  KVANT_INLINE F splat(float x) { return x; }
  KVANT_INLINE F load(const float* x) { return *x; }
  KVANT_INLINE void store(float* x, F a) { *x = a; }
  KVANT_INLINE void stream(float* x, F a) { *x = a; }
  KVANT_INLINE void fence() {}
  // As many floats as D holds doubles, which are added, subtracted and multiplied with +, - and *.
  KVANT_INLINE D widen(const float* x) { return double(*x); }
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
  KVANT_INLINE I iload(const int32_t* x) {
    I a;
    memcpy(&a, x, 4);
    return a;
  }
  KVANT_INLINE void istore(int32_t* x, I a) { *x = a; }
  KVANT_INLINE I iadd(I a, I b) { return I(uint32_t(a) + uint32_t(b)); }
  KVANT_INLINE I isub(I a, I b) { return I(uint32_t(a) - uint32_t(b)); }
  KVANT_INLINE I iand(I a, I b) { return a & b; }
  KVANT_INLINE I ior(I a, I b) { return a | b; }
  KVANT_INLINE I imin(I a, I b) { return a < b ? a : b; }
  KVANT_INLINE I imax(I a, I b) { return a > b ? a : b; }
  KVANT_INLINE M ieq(I a, I b) { return a == b; }
  KVANT_INLINE I iselect(M m, I a, I b) { return m ? a : b; }
  KVANT_INLINE I ixor(I a, I b) { return a ^ b; }
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

  template <I (*op)(I, I)>
  KVANT_INLINE I fold_each(const I (&rows)[1]) { return rows[0]; }
  KVANT_INLINE void store_bytes(uint8_t* out, const I (&a)[1]) { *out = uint8_t(a[0]); }
  KVANT_INLINE void store_four_bytes(uint8_t* out, I a, I b, I c, I d) {
    const I all[4] = {a, b, c, d};
    for (int i = 0; i < 4; ++i) out[4 * i] = uint8_t(all[i]);
  }

  KVANT_INLINE I load_u8(const uint8_t* x) { return *x; }
  KVANT_INLINE F low_half(I a) { return f16_to_f32(uint16_t(a)); }
  KVANT_INLINE I lookup_bytes(const uint8_t* table, I a) {
    uint32_t r = 0;
    for (int shift = 0; shift < 32; shift += 8) r |= uint32_t(table[uint32_t(a) >> shift & 15]) << shift;
    return I(r);
  }
  KVANT_INLINE void gather_pairs(const uint64_t* table, I index, I& low, I& high) {
    low = I(uint32_t(table[index]));
    high = I(uint32_t(table[index] >> 32));
  }
  KVANT_INLINE I gather(const uint32_t* table, I index) { return I(table[index]); }

  static constexpr int kWideOffset = 0;
  static constexpr int kTiles = 1, kFloatColumns = 4, kColumns[] = {4, 4};
  static constexpr bool kSteady = false;
  static constexpr int dot_class(int max) { return max == 255 ? 255 : 127; }
  template <int kSteps, int kMax, class Sum, int kT, int kC>
  KVANT_INLINE void dot(const uint8_t* codes, int64_t stride, const uint8_t* q, const int32_t* start,
                        Sum (&sum)[kT][kC]) {
    for (int t = 0; t < kT; ++t) {
      for (int c = 0; c < kC; ++c) {
        sum[t][c].v[0] = start[c];
        for (int s = 0; s < kSteps; ++s) {
          for (int i = 0; i < 4; ++i) {
            const uint8_t code = codes[t * stride + 64 * s + i];
            sum[t][c].v[0] += (kMax == 255 ? int8_t(code) : int(code)) * int8_t(q[32 * c + 4 * s + i]);
          }
        }
      }
    }
  }

  KVANT_INLINE I dot_bytes(I sum, I u, I s) {
    for (int i = 0; i < 32; i += 8) sum += int(uint8_t(u >> i)) * int8_t(s >> i);
    return sum;
  }
  KVANT_INLINE I sub_bytes(I a, I b) {
    uint32_t r = 0;
    for (int i = 0; i < 32; i += 8) r |= uint32_t(uint8_t(uint8_t(a >> i) - uint8_t(b >> i))) << i;
    return I(r);
  }

  template <class Row>
  KVANT_INLINE void transpose4(Row&& row, float* out) {
    for (int r = 0; r < 16; ++r) {
      for (int w = 0; w < 4; ++w) memcpy(out + 16 * w + r, row(r) + w, 4);
    }
  }

  KVANT_INLINE void store_quads(uint8_t* out, int, I a, I b, I c, I d) {
    const I words[4] = {a, b, c, d};
    memcpy(out, words, 16);
  }

  KVANT_INLINE void lookup(const int8_t* table, int8_t* codes, int count) {
    for (int i = 0; i < count; ++i) codes[i] = table[codes[i]];
  }

  KVANT_INLINE F low_nibble(I a) { return to_f32(iand(a, isplat(15))); }

  KVANT_INLINE F fma(F a, F b, F c) { return __builtin_fmaf(a, b, c); }

  // For kernels/probe.h: a product of four bytes as a program without vectors computes it.
  static constexpr int kProbeChains = 4;
  KVANT_INLINE void probe_hide(I& a) { asm volatile("" : "+r"(a)); }
  KVANT_INLINE I probe_dot(I sum, I a, I b) {
    probe_hide(a);
    for (int i = 0; i < 32; i += 8) sum = iadd(sum, I(int8_t(a >> i)) * I(int8_t(b >> i)));
    return sum;
  }
  KVANT_INLINE void probe_hide(F& a) { asm volatile("" : "+m"(a)); }
};

}  // namespace
}  // namespace kvant
