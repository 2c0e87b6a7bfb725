// AVX-512 F, BW, DQ, VL with VNNI: one register of sixteen lanes.
#pragma once

#include <immintrin.h>

#include "simd/vec.h"

namespace kvant {
namespace {

struct Avx512Vnni {
  static constexpr int kParts = 1;
  static constexpr int kWidth = 16;
  static constexpr bool kHasTables = true;
  using F = __m512;
  using I = __m512i;
  using M = __mmask16;
  using D = __m512d;

  KVANT_INLINE F splat(float x) { return _mm512_set1_ps(x); }
  KVANT_INLINE F load(const float* x) { return _mm512_loadu_ps(x); }
  KVANT_INLINE void store(float* x, F a) { _mm512_storeu_ps(x, a); }
  KVANT_INLINE void stream(float* x, F a) { _mm512_stream_ps(x, a); }
  KVANT_INLINE void fence() { _mm_sfence(); }
  // As many floats as D holds doubles, which are added, subtracted and multiplied with +, - and *.
  KVANT_INLINE D widen(const float* x) { return _mm512_cvtps_pd(_mm256_loadu_ps(x)); }
  KVANT_INLINE F load_i8(const int8_t* x) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)x)));
  }
  KVANT_INLINE F load_f16(const uint16_t* x) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)x)); }
  KVANT_INLINE void store_f16(uint16_t* x, F a) {
    _mm256_storeu_si256((__m256i*)x, _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
  }
  KVANT_INLINE F load_bf16(const uint16_t* x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)x)), 16));
  }
  KVANT_INLINE F round_to_f16(F a) { return _mm512_cvtph_ps(_mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT)); }

  KVANT_INLINE F add(F a, F b) { return _mm512_add_ps(a, b); }
  KVANT_INLINE F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  KVANT_INLINE F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  KVANT_INLINE F div(F a, F b) { return _mm512_div_ps(a, b); }
  KVANT_INLINE F sqrt(F a) { return _mm512_sqrt_ps(a); }
  KVANT_INLINE F min(F a, F b) { return _mm512_min_ps(a, b); }
  KVANT_INLINE F max(F a, F b) { return _mm512_max_ps(a, b); }
  KVANT_INLINE F abs(F a) { return _mm512_andnot_ps(_mm512_set1_ps(-0.0f), a); }
  KVANT_INLINE F neg(F a) { return _mm512_xor_ps(_mm512_set1_ps(-0.0f), a); }
  KVANT_INLINE F copysign(F a, F b) {
    // Bitwise choice: where the sign mask is set take b, else a.
    return _mm512_castsi512_ps(_mm512_ternarylogic_epi32(_mm512_set1_epi32(INT32_MIN), _mm512_castps_si512(b),
                                                         _mm512_castps_si512(a), 0xca));
  }
  KVANT_INLINE M lt(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
  KVANT_INLINE M le(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ); }
  KVANT_INLINE M eq(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
  KVANT_INLINE F select(M m, F a, F b) { return _mm512_mask_blend_ps(m, b, a); }

  KVANT_INLINE M mask_and(M a, M b) { return M(a & b); }
  KVANT_INLINE M mask_or(M a, M b) { return M(a | b); }
  KVANT_INLINE M mask_not(M a) { return M(~a); }
  KVANT_INLINE bool any(M a) { return a != 0; }

  KVANT_INLINE I isplat(int32_t x) { return _mm512_set1_epi32(x); }
  KVANT_INLINE I iload(const int32_t* x) { return _mm512_loadu_si512(x); }
  KVANT_INLINE void istore(int32_t* x, I a) { _mm512_storeu_si512(x, a); }
  KVANT_INLINE I iadd(I a, I b) { return _mm512_add_epi32(a, b); }
  KVANT_INLINE I isub(I a, I b) { return _mm512_sub_epi32(a, b); }
  KVANT_INLINE I iand(I a, I b) { return _mm512_and_si512(a, b); }
  KVANT_INLINE I ior(I a, I b) { return _mm512_or_si512(a, b); }
  KVANT_INLINE I ixor(I a, I b) { return _mm512_xor_si512(a, b); }
  KVANT_INLINE I imin(I a, I b) { return _mm512_min_epi32(a, b); }
  KVANT_INLINE I imax(I a, I b) { return _mm512_max_epi32(a, b); }
  KVANT_INLINE M ieq(I a, I b) { return _mm512_cmpeq_epi32_mask(a, b); }
  KVANT_INLINE I iselect(M m, I a, I b) { return _mm512_mask_blend_epi32(m, b, a); }
  template <int S> KVANT_INLINE I shl(I a) { return _mm512_slli_epi32(a, S); }
  template <int S> KVANT_INLINE I shr(I a) { return _mm512_srli_epi32(a, S); }
  KVANT_INLINE F to_f32(I a) { return _mm512_cvtepi32_ps(a); }
  KVANT_INLINE I trunc(F a) { return _mm512_cvttps_epi32(a); }
  KVANT_INLINE I bits(F a) { return _mm512_castps_si512(a); }
  KVANT_INLINE F from_bits(I a) { return _mm512_castsi512_ps(a); }

  // Four 4x4 transposes side by side: register k holds rows k, k + 4, k + 8, k + 12.
  template <class Row>
  KVANT_INLINE void transpose4(Row&& row, float* out) {
    __m512 r[4];
    for (int k = 0; k < 4; ++k) {
      __m512 four = _mm512_castps128_ps512(_mm_loadu_ps(row(k)));
      four = _mm512_insertf32x4(four, _mm_loadu_ps(row(k + 4)), 1);
      four = _mm512_insertf32x4(four, _mm_loadu_ps(row(k + 8)), 2);
      r[k] = _mm512_insertf32x4(four, _mm_loadu_ps(row(k + 12)), 3);
    }
    const __m512 a = _mm512_unpacklo_ps(r[0], r[1]), b = _mm512_unpackhi_ps(r[0], r[1]);
    const __m512 c = _mm512_unpacklo_ps(r[2], r[3]), d = _mm512_unpackhi_ps(r[2], r[3]);
    _mm512_storeu_ps(out, _mm512_shuffle_ps(a, c, 0x44));
    _mm512_storeu_ps(out + 16, _mm512_shuffle_ps(a, c, 0xee));
    _mm512_storeu_ps(out + 2 * 16, _mm512_shuffle_ps(b, d, 0x44));
    _mm512_storeu_ps(out + 3 * 16, _mm512_shuffle_ps(b, d, 0xee));
  }
  template <class Row>
  KVANT_INLINE void transpose(Row&& row, int first, float* out) {
    for (int column = 0; column < 16; column += 4) {
      transpose4([&](int r) KVANT_LAMBDA { return row(r) + first + column; }, out + column * 16);
    }
  }

  // Halving trees: pairs of rows are interleaved and the halves joined.
  template <I (*op)(I, I)>
  KVANT_INLINE I fold_each(const I (&rows)[16]) {
    I quarter[4];
    for (int h = 0; h < 4; ++h) {
      const I* r = rows + 4 * h;
      const I ab = op(_mm512_unpacklo_epi32(r[0], r[1]), _mm512_unpackhi_epi32(r[0], r[1]));
      const I cd = op(_mm512_unpacklo_epi32(r[2], r[3]), _mm512_unpackhi_epi32(r[2], r[3]));
      quarter[h] = op(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    }
    I half[2];
    for (int h = 0; h < 2; ++h) {
      const I a = quarter[2 * h], b = quarter[2 * h + 1];
      half[h] = op(_mm512_shuffle_i32x4(a, b, 0x44), _mm512_shuffle_i32x4(a, b, 0xee));
    }
    return op(_mm512_shuffle_i32x4(half[0], half[1], 0x88), _mm512_shuffle_i32x4(half[0], half[1], 0xdd));
  }

  KVANT_INLINE void store_bytes(uint8_t* out, const I (&a)[1]) {
    _mm_storeu_si128((__m128i*)out, _mm512_cvtepi32_epi8(a[0]));
  }
  KVANT_INLINE void store_four_bytes(uint8_t* out, I a, I b, I c, I d) {
    const I low = isplat(255);
    const I ab = _mm512_packus_epi32(iand(a, low), iand(b, low)), cd = _mm512_packus_epi32(iand(c, low), iand(d, low));
    _mm512_storeu_si512(out, _mm512_packus_epi16(ab, cd));
  }

  KVANT_INLINE I load_u8(const uint8_t* x) { return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)x)); }
  KVANT_INLINE F low_half(I a) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(a)); }
  KVANT_INLINE I lookup_bytes(const uint8_t* table, I a) {
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)table)), a);
  }
  // Loads one by one: two gathers of eight take longer.
  KVANT_INLINE __m128d load_pair(const uint64_t* table, const uint32_t* at) {
    const __m128d first = _mm_load_sd(reinterpret_cast<const double*>(table + at[0]));
    return _mm_loadh_pd(first, reinterpret_cast<const double*>(table + at[1]));
  }
  KVANT_INLINE I load_eight(const uint64_t* table, const uint32_t* at) {
    const __m256d low = _mm256_set_m128d(load_pair(table, at + 2), load_pair(table, at));
    const __m256d high = _mm256_set_m128d(load_pair(table, at + 6), load_pair(table, at + 4));
    return _mm512_castpd_si512(_mm512_insertf64x4(_mm512_castpd256_pd512(low), high, 1));
  }
  KVANT_INLINE void gather_pairs(const uint64_t* table, I index, I& low, I& high) {
    alignas(64) uint32_t at[16];
    _mm512_store_si512(at, index);
    const I first = load_eight(table, at), second = load_eight(table, at + 8);
    const I even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    low = _mm512_permutex2var_epi32(first, even, second);
    high = _mm512_permutex2var_epi32(first, _mm512_add_epi32(even, _mm512_set1_epi32(1)), second);
  }
  KVANT_INLINE I gather(const uint32_t* table, I index) { return _mm512_i32gather_epi32(index, table, 4); }

  static constexpr int kWideOffset = 128;
  // Groups of 16 hold one sum more per output: four columns would not fit the registers.
  static constexpr int kTiles = 3, kFloatColumns = 8, kColumns[] = {4, 3};
  static constexpr bool kSteady = true;
  static constexpr int dot_class(int) { return 255; }
  template <int kMax>
  KVANT_INLINE I dot4(I sum, I codes, I q) { return _mm512_dpbusd_epi32(sum, codes, q); }
  KVANT_INLINE I dot_bytes(I sum, I u, I s) { return _mm512_dpbusd_epi32(sum, u, s); }
  KVANT_INLINE I sub_bytes(I a, I b) { return _mm512_sub_epi8(a, b); }
  // A value that stays in its register: gcc would rather load it again for each use.
  KVANT_INLINE I hold(I a) {
    __asm__("" : "+v"(a));
    return a;
  }
  template <int kSteps, int kMax, class Sum, int kT, int kC>
  KVANT_INLINE void dot(const uint8_t* codes, int64_t stride, const uint8_t* q, const int32_t* start,
                        Sum (&sum)[kT][kC]) {
    for (int c = 0; c < kC; ++c) {
      for (int t = 0; t < kT; ++t) sum[t][c].v[0] = _mm512_set1_epi32(start[c]);
    }
    for (int s = 0; s < kSteps; ++s) {
      I w[kT];
      for (int t = 0; t < kT; ++t) w[t] = hold(_mm512_loadu_si512(codes + t * stride + 64 * s));
      for (int c = 0; c < kC; ++c) {
        int32_t four;
        __builtin_memcpy(&four, q + 32 * c + 4 * s, 4);
        const I x = hold(_mm512_set1_epi32(four));
        for (int t = 0; t < kT; ++t) sum[t][c].v[0] = _mm512_dpbusd_epi32(sum[t][c].v[0], w[t], x);
      }
    }
  }

  KVANT_INLINE void store_quads(uint8_t* out, int, I a, I b, I c, I d) {
    const I ab = _mm512_unpacklo_epi32(a, b), cd = _mm512_unpacklo_epi32(c, d);
    const I AB = _mm512_unpackhi_epi32(a, b), CD = _mm512_unpackhi_epi32(c, d);
    const I quads[4] = {_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd),
                        _mm512_unpacklo_epi64(AB, CD), _mm512_unpackhi_epi64(AB, CD)};
    for (int j = 0; j < 4; ++j) _mm512_storeu_si512(out + 64 * j, quads[j]);
  }

  KVANT_INLINE F low_nibble(I a) {
    return _mm512_permutexvar_ps(a, _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
  }
  KVANT_INLINE F table32(const float* table, I index) {
    return _mm512_permutex2var_ps(_mm512_load_ps(table), index, _mm512_load_ps(table + 16));
  }

  KVANT_INLINE void lookup(const int8_t* table, int8_t* codes, int count) {
    // Sixteen at a time: codes were stored so, and wider loads would wait for the stores.
    const __m128i t = _mm_loadu_si128((const __m128i*)table);
    for (int i = 0; i < count; i += 16) {
      __m128i* p = (__m128i*)(codes + i);
      _mm_storeu_si128(p, _mm_shuffle_epi8(t, _mm_loadu_si128(p)));
    }
  }

  KVANT_INLINE F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  // x times +1 or -1, which is exact, added to what the lane is paired with.
  KVANT_INLINE void butterflies(F (&a)[1]) {
    const F one = splat(1.0f), less = splat(-1.0f);
    a[0] = fma(a[0], select(M(0xaaaa), less, one), _mm512_permute_ps(a[0], 0xb1));
    a[0] = fma(a[0], select(M(0xcccc), less, one), _mm512_permute_ps(a[0], 0x4e));
    a[0] = fma(a[0], select(M(0xf0f0), less, one), _mm512_shuffle_f32x4(a[0], a[0], 0xb1));
    a[0] = fma(a[0], select(M(0xff00), less, one), _mm512_shuffle_f32x4(a[0], a[0], 0x4e));
  }
  KVANT_INLINE F swap_pairs(F a) { return _mm512_permute_ps(a, 0xb1); }

  // For kernels/probe.h, as in avx2.h.
  static constexpr int kProbeChains = 16;
  KVANT_INLINE I probe_dot(I sum, I a, I b) {
    asm volatile("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    return sum;
  }
  KVANT_INLINE void probe_hide(I& a) { asm volatile("" : "+v"(a)); }
  KVANT_INLINE void probe_hide(F& a) { asm volatile("" : "+v"(a)); }
};

}  // namespace
}  // namespace kvant
