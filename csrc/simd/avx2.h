// AVX2 with FMA and F16C: two registers of eight lanes.
#pragma once

#include <immintrin.h>

#include "simd/vec.h"

namespace kvant {
namespace {

struct Avx2 {
  static constexpr int kParts = 2;
  static constexpr int kWidth = 8;
  static constexpr bool kHasTables = false;
  using F = __m256;
  using I = __m256i;
  using M = __m256;
  using D = __m256d;

  KVANT_INLINE F splat(float x) { return _mm256_set1_ps(x); }
  KVANT_INLINE F load(const float* x) { return _mm256_loadu_ps(x); }
  KVANT_INLINE void store(float* x, F a) { _mm256_storeu_ps(x, a); }
  KVANT_INLINE void stream(float* x, F a) { _mm256_stream_ps(x, a); }
  KVANT_INLINE void fence() { _mm_sfence(); }
  // As many floats as D holds doubles, which are added, subtracted and multiplied with +, - and *.
  KVANT_INLINE D widen(const float* x) { return _mm256_cvtps_pd(_mm_loadu_ps(x)); }
  KVANT_INLINE F load_i8(const int8_t* x) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)x)));
  }
  KVANT_INLINE F load_f16(const uint16_t* x) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)x)); }
  KVANT_INLINE void store_f16(uint16_t* x, F a) {
    _mm_storeu_si128((__m128i*)x, _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
  }
  KVANT_INLINE F load_bf16(const uint16_t* x) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)x)), 16));
  }
  KVANT_INLINE F round_to_f16(F a) { return _mm256_cvtph_ps(_mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT)); }

  KVANT_INLINE F add(F a, F b) { return _mm256_add_ps(a, b); }
  KVANT_INLINE F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  KVANT_INLINE F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  KVANT_INLINE F div(F a, F b) { return _mm256_div_ps(a, b); }
  KVANT_INLINE F sqrt(F a) { return _mm256_sqrt_ps(a); }
  KVANT_INLINE F min(F a, F b) { return _mm256_min_ps(a, b); }
  KVANT_INLINE F max(F a, F b) { return _mm256_max_ps(a, b); }
  KVANT_INLINE F abs(F a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
  KVANT_INLINE F neg(F a) { return _mm256_xor_ps(_mm256_set1_ps(-0.0f), a); }
  KVANT_INLINE F copysign(F a, F b) {
    const F sign = _mm256_set1_ps(-0.0f);
    return _mm256_or_ps(_mm256_andnot_ps(sign, a), _mm256_and_ps(sign, b));
  }
  KVANT_INLINE M lt(F a, F b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
  KVANT_INLINE M le(F a, F b) { return _mm256_cmp_ps(a, b, _CMP_LE_OQ); }
  KVANT_INLINE M eq(F a, F b) { return _mm256_cmp_ps(a, b, _CMP_EQ_OQ); }
  KVANT_INLINE F select(M m, F a, F b) { return _mm256_blendv_ps(b, a, m); }

  KVANT_INLINE M mask_and(M a, M b) { return _mm256_and_ps(a, b); }
  KVANT_INLINE M mask_or(M a, M b) { return _mm256_or_ps(a, b); }
  KVANT_INLINE M mask_not(M a) { return _mm256_xor_ps(a, _mm256_castsi256_ps(_mm256_set1_epi32(-1))); }
  KVANT_INLINE bool any(M a) { return _mm256_movemask_ps(a) != 0; }

  KVANT_INLINE I isplat(int32_t x) { return _mm256_set1_epi32(x); }
  KVANT_INLINE I iload(const int32_t* x) { return _mm256_loadu_si256((const __m256i*)x); }
  KVANT_INLINE void istore(int32_t* x, I a) { _mm256_storeu_si256((__m256i*)x, a); }
  KVANT_INLINE I iadd(I a, I b) { return _mm256_add_epi32(a, b); }
  KVANT_INLINE I isub(I a, I b) { return _mm256_sub_epi32(a, b); }
  KVANT_INLINE I iand(I a, I b) { return _mm256_and_si256(a, b); }
  KVANT_INLINE I ior(I a, I b) { return _mm256_or_si256(a, b); }
  KVANT_INLINE I ixor(I a, I b) { return _mm256_xor_si256(a, b); }
  KVANT_INLINE I imin(I a, I b) { return _mm256_min_epi32(a, b); }
  KVANT_INLINE I imax(I a, I b) { return _mm256_max_epi32(a, b); }
  KVANT_INLINE M ieq(I a, I b) { return _mm256_castsi256_ps(_mm256_cmpeq_epi32(a, b)); }
  KVANT_INLINE I iselect(M m, I a, I b) {
    return _mm256_castps_si256(_mm256_blendv_ps(_mm256_castsi256_ps(b), _mm256_castsi256_ps(a), m));
  }
  template <int S> KVANT_INLINE I shl(I a) { return _mm256_slli_epi32(a, S); }
  template <int S> KVANT_INLINE I shr(I a) { return _mm256_srli_epi32(a, S); }
  KVANT_INLINE F to_f32(I a) { return _mm256_cvtepi32_ps(a); }
  KVANT_INLINE I trunc(F a) { return _mm256_cvttps_epi32(a); }
  KVANT_INLINE I bits(F a) { return _mm256_castps_si256(a); }
  KVANT_INLINE F from_bits(I a) { return _mm256_castsi256_ps(a); }

  // Two 4x4 transposes side by side: four rows of the low half of the lanes and four of the high.
  template <class Row>
  KVANT_INLINE void transpose4(Row&& row, float* out) {
    for (int half = 0; half < 16; half += 8) {
      __m256 r[4];
      for (int k = 0; k < 4; ++k) {
        r[k] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(row(half + k))),
                                    _mm_loadu_ps(row(half + 4 + k)), 1);
      }
      const __m256 a = _mm256_unpacklo_ps(r[0], r[1]), b = _mm256_unpackhi_ps(r[0], r[1]);
      const __m256 c = _mm256_unpacklo_ps(r[2], r[3]), d = _mm256_unpackhi_ps(r[2], r[3]);
      float* o = out + half;
      _mm256_storeu_ps(o, _mm256_shuffle_ps(a, c, 0x44));
      _mm256_storeu_ps(o + 16, _mm256_shuffle_ps(a, c, 0xee));
      _mm256_storeu_ps(o + 2 * 16, _mm256_shuffle_ps(b, d, 0x44));
      _mm256_storeu_ps(o + 3 * 16, _mm256_shuffle_ps(b, d, 0xee));
    }
  }
  template <class Row>
  KVANT_INLINE void transpose(Row&& row, int first, float* out) {
    for (int column = 0; column < 16; column += 4) {
      transpose4([&](int r) KVANT_LAMBDA { return row(r) + first + column; }, out + column * 16);
    }
  }

  // Halving trees: pairs of rows are interleaved and the halves joined.
  template <I (*op)(I, I)>
  KVANT_INLINE I fold_each(const I (&rows)[8]) {
    I quarter[2];
    for (int h = 0; h < 2; ++h) {
      const I* r = rows + 4 * h;
      const I ab = op(_mm256_unpacklo_epi32(r[0], r[1]), _mm256_unpackhi_epi32(r[0], r[1]));
      const I cd = op(_mm256_unpacklo_epi32(r[2], r[3]), _mm256_unpackhi_epi32(r[2], r[3]));
      quarter[h] = op(_mm256_unpacklo_epi64(ab, cd), _mm256_unpackhi_epi64(ab, cd));
    }
    return op(_mm256_permute2x128_si256(quarter[0], quarter[1], 0x20),
                _mm256_permute2x128_si256(quarter[0], quarter[1], 0x31));
  }

  KVANT_INLINE void store_bytes(uint8_t* out, const I (&a)[2]) {
    const I low = isplat(255);
    const I words = _mm256_packus_epi32(iand(a[0], low), iand(a[1], low));
    const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128((__m128i*)out, _mm_shuffle_epi32(bytes, 0xd8));
  }
  KVANT_INLINE void store_four_bytes(uint8_t* out, I a, I b, I c, I d) {
    const I low = isplat(255);
    const I ab = _mm256_packus_epi32(iand(a, low), iand(b, low)), cd = _mm256_packus_epi32(iand(c, low), iand(d, low));
    _mm256_storeu_si256((I*)out, _mm256_packus_epi16(ab, cd));
  }

  KVANT_INLINE I load_u8(const uint8_t* x) { return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)x)); }
  KVANT_INLINE F low_half(I a) {
    const I words = _mm256_packus_epi32(iand(a, isplat(0xffff)), _mm256_setzero_si256());
    return _mm256_cvtph_ps(_mm256_castsi256_si128(_mm256_permute4x64_epi64(words, 0x08)));
  }
  KVANT_INLINE I lookup_bytes(const uint8_t* table, I a) {
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)table)), a);
  }
  // Loads one by one: gather instructions are microcode on processors that were made safe, and slower.
  KVANT_INLINE __m128 load_pair(const uint64_t* table, const uint32_t* at) {
    const __m128d first = _mm_load_sd(reinterpret_cast<const double*>(table + at[0]));
    return _mm_castpd_ps(_mm_loadh_pd(first, reinterpret_cast<const double*>(table + at[1])));
  }
  KVANT_INLINE void gather_pairs(const uint64_t* table, I index, I& low, I& high) {
    alignas(32) uint32_t at[8];
    _mm256_store_si256(reinterpret_cast<I*>(at), index);
    const __m256 first = _mm256_set_m128(load_pair(table, at + 4), load_pair(table, at));
    const __m256 second = _mm256_set_m128(load_pair(table, at + 6), load_pair(table, at + 2));
    low = _mm256_castps_si256(_mm256_shuffle_ps(first, second, 0x88));
    high = _mm256_castps_si256(_mm256_shuffle_ps(first, second, 0xdd));
  }
  KVANT_INLINE __m128i load_four(const uint32_t* table, const uint32_t* at) {
    const auto word = [&](int i) KVANT_LAMBDA { return int(table[at[i]]); };
    return _mm_insert_epi32(_mm_insert_epi32(_mm_insert_epi32(_mm_cvtsi32_si128(word(0)), word(1), 1), word(2), 2),
                            word(3), 3);
  }
  KVANT_INLINE I gather(const uint32_t* table, I index) {
    alignas(32) uint32_t at[8];
    _mm256_store_si256(reinterpret_cast<I*>(at), index);
    return _mm256_set_m128i(load_four(table, at + 4), load_four(table, at));
  }

  static constexpr int kWideOffset = 0;
  static constexpr int kTiles = 1, kFloatColumns = 4, kColumns[] = {3, 3};
  static constexpr bool kSteady = false;
  static constexpr int dot_class(int max) { return max <= 15 ? 15 : max <= 31 ? 31 : max <= 63 ? 63 : max <= 127 ? 127 : 255; }
  // Pairs of products reach 2 * 255 * 128: the upper seven bits twice and the lowest one are taken each for itself.
  KVANT_INLINE I dot_bytes(I sum, I u, I s) {
    const I ones = _mm256_set1_epi16(1), low = _mm256_set1_epi8(1);
    const I half = iand(_mm256_srli_epi16(u, 1), _mm256_set1_epi8(127));
    const I upper = _mm256_madd_epi16(_mm256_maddubs_epi16(half, s), ones);
    const I lower = _mm256_madd_epi16(_mm256_maddubs_epi16(iand(u, low), s), ones);
    return iadd(iadd(sum, lower), _mm256_slli_epi32(upper, 1));
  }
  KVANT_INLINE I sub_bytes(I a, I b) { return _mm256_sub_epi8(a, b); }
  // A value that is computed where it stands: gcc puts off such additions until the last, and stores
  // what is to be added.
  KVANT_INLINE I here(I a) {
    __asm__("" : "+x"(a));
    return a;
  }
  // Products are added in pairs to sixteen bits; as many pairs are added up there as cannot overflow.
  template <int kSteps, int kMax, class Sum, int kT, int kC>
  KVANT_INLINE void dot(const uint8_t* codes, int64_t stride, const uint8_t* q, const int32_t* start,
                        Sum (&sum)[kT][kC]) {
    constexpr int kFit = kMax == 255 ? 1 : 32767 / (2 * kMax * 127), kRun = kFit < kSteps ? kFit : kSteps;
    const I ones = _mm256_set1_epi16(1);
    KVANT_UNROLL
    for (int t = 0; t < kT; ++t) {
      KVANT_UNROLL
      for (int first = 0; first < kSteps; first += kRun) {
        I pairs[kC][2];
        KVANT_UNROLL
        for (int s = first; s < (first + kRun < kSteps ? first + kRun : kSteps); ++s) {
          I w[2], size[2];
          KVANT_UNROLL
          for (int p = 0; p < 2; ++p) {
            w[p] = here(_mm256_loadu_si256((const __m256i*)(codes + t * stride + 64 * s + 32 * p)));
            // |w| times x with the sign of w: at most 2 * 128 * 127, which fits.
            size[p] = kMax == 255 ? _mm256_abs_epi8(w[p]) : w[p];
          }
          KVANT_UNROLL
          for (int c = 0; c < kC; ++c) {
            int32_t four;
            __builtin_memcpy(&four, q + 32 * c + 4 * s, 4);
            const I x = here(_mm256_set1_epi32(four));
            KVANT_UNROLL
            for (int p = 0; p < 2; ++p) {
              const I product = _mm256_maddubs_epi16(size[p], kMax == 255 ? _mm256_sign_epi8(x, w[p]) : x);
              pairs[c][p] = s == first ? product : here(_mm256_add_epi16(pairs[c][p], product));
            }
          }
        }
        KVANT_UNROLL
        for (int c = 0; c < kC; ++c) {
          KVANT_UNROLL
          for (int p = 0; p < 2; ++p) {
            // The start is loaded when it is needed: registers are few.
            const I before = first == 0 ? isplat(start[c]) : sum[t][c].v[p];
            sum[t][c].v[p] = here(iadd(before, _mm256_madd_epi16(pairs[c][p], ones)));
          }
        }
      }
    }
  }

  KVANT_INLINE void store_quads(uint8_t* out, int part, I a, I b, I c, I d) {
    const I ab = _mm256_unpacklo_epi32(a, b), cd = _mm256_unpacklo_epi32(c, d);
    const I AB = _mm256_unpackhi_epi32(a, b), CD = _mm256_unpackhi_epi32(c, d);
    const I quads[4] = {_mm256_unpacklo_epi64(ab, cd), _mm256_unpackhi_epi64(ab, cd),
                        _mm256_unpacklo_epi64(AB, CD), _mm256_unpackhi_epi64(AB, CD)};
    for (int j = 0; j < 4; ++j) _mm256_storeu_si256((__m256i*)(out + 64 * j + 32 * part), quads[j]);
  }

  KVANT_INLINE void lookup(const int8_t* table, int8_t* codes, int count) {
    // Sixteen at a time: codes were stored so, and wider loads would wait for the stores.
    const __m128i t = _mm_loadu_si128((const __m128i*)table);
    for (int i = 0; i < count; i += 16) {
      __m128i* p = (__m128i*)(codes + i);
      _mm_storeu_si128(p, _mm_shuffle_epi8(t, _mm_loadu_si128(p)));
    }
  }

  KVANT_INLINE F low_nibble(I a) { return to_f32(iand(a, isplat(15))); }

  KVANT_INLINE F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  // x times +1 or -1, which is exact, added to what the lane is paired with.
  KVANT_INLINE void butterflies(F (&a)[2]) {
    for (int p = 0; p < 2; ++p) {
      a[p] = fma(a[p], _mm256_setr_ps(1, -1, 1, -1, 1, -1, 1, -1), _mm256_permute_ps(a[p], 0xb1));
      a[p] = fma(a[p], _mm256_setr_ps(1, 1, -1, -1, 1, 1, -1, -1), _mm256_permute_ps(a[p], 0x4e));
      a[p] = fma(a[p], _mm256_setr_ps(1, 1, 1, 1, -1, -1, -1, -1), _mm256_permute2f128_ps(a[p], a[p], 1));
    }
    const F sum = add(a[0], a[1]);
    a[1] = sub(a[0], a[1]);
    a[0] = sum;
  }
  KVANT_INLINE F swap_pairs(F a) { return _mm256_permute_ps(a, 0xb1); }

  // For kernels/probe.h: chains that hide the latency of a product, and values the compiler may not
  // reason about. probe_dot: each lane += 4 adjacent products, unsigned times signed; spelled out,
  // because compilers do half of it once for all chains, and move the sums between registers.
  static constexpr int kProbeChains = 12;
  KVANT_INLINE I probe_dot(I sum, I a, I b) {
    const I ones = _mm256_set1_epi16(1);
    I t;
    asm volatile("vpmaddubsw %3, %2, %1\n\tvpmaddwd %4, %1, %1\n\tvpaddd %1, %0, %0"
                 : "+x"(sum), "=&x"(t) : "x"(a), "x"(b), "x"(ones));
    return sum;
  }
  KVANT_INLINE void probe_hide(I& a) { asm volatile("" : "+x"(a)); }
  KVANT_INLINE void probe_hide(F& a) { asm volatile("" : "+x"(a)); }
};

}  // namespace
}  // namespace kvant
