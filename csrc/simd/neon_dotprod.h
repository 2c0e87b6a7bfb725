// Armv8.2 NEON with the dot-product extension: four registers of four lanes.
#pragma once

#include <arm_neon.h>

#include "simd/vec.h"

namespace kvant {
namespace {

struct NeonDotprod {
  static constexpr int kParts = 4;
  static constexpr int kWidth = 4;
  static constexpr bool kHasTables = false;
  using F = float32x4_t;
  using I = int32x4_t;
  using M = uint32x4_t;
  using D = float64x2_t;

  KVANT_INLINE F splat(float x) { return vdupq_n_f32(x); }
  KVANT_INLINE F load(const float* x) { return vld1q_f32(x); }
  KVANT_INLINE void store(float* x, F a) { vst1q_f32(x, a); }
  KVANT_INLINE void stream(float* x, F a) { vst1q_f32(x, a); }
  KVANT_INLINE void fence() {}
  // As many floats as D holds doubles, which are added, subtracted and multiplied with +, - and *.
  KVANT_INLINE D widen(const float* x) { return vcvt_f64_f32(vld1_f32(x)); }
  KVANT_INLINE F load_i8(const int8_t* x) {
    int32_t four;
    __builtin_memcpy(&four, x, 4);
    const int8x8_t bytes = vreinterpret_s8_s32(vdup_n_s32(four));
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(bytes))));
  }
  KVANT_INLINE F load_f16(const uint16_t* x) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(x))); }
  KVANT_INLINE void store_f16(uint16_t* x, F a) { vst1_u16(x, vreinterpret_u16_f16(vcvt_f16_f32(a))); }
  KVANT_INLINE F load_bf16(const uint16_t* x) {
    return vreinterpretq_f32_u32(vshlq_n_u32(vmovl_u16(vld1_u16(x)), 16));
  }
  KVANT_INLINE F round_to_f16(F a) { return vcvt_f32_f16(vcvt_f16_f32(a)); }

  KVANT_INLINE F add(F a, F b) { return vaddq_f32(a, b); }
  KVANT_INLINE F sub(F a, F b) { return vsubq_f32(a, b); }
  KVANT_INLINE F mul(F a, F b) { return vmulq_f32(a, b); }
  KVANT_INLINE F div(F a, F b) { return vdivq_f32(a, b); }
  KVANT_INLINE F sqrt(F a) { return vsqrtq_f32(a); }
  // vminq and vmaxq treat NaN and signed zero differently from what vec.h promises.
  KVANT_INLINE F min(F a, F b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
  KVANT_INLINE F max(F a, F b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
  KVANT_INLINE F abs(F a) { return vabsq_f32(a); }
  KVANT_INLINE F neg(F a) { return vnegq_f32(a); }
  KVANT_INLINE F copysign(F a, F b) { return vbslq_f32(vdupq_n_u32(0x80000000u), b, a); }
  KVANT_INLINE M lt(F a, F b) { return vcltq_f32(a, b); }
  KVANT_INLINE M le(F a, F b) { return vcleq_f32(a, b); }
  KVANT_INLINE M eq(F a, F b) { return vceqq_f32(a, b); }
  KVANT_INLINE F select(M m, F a, F b) { return vbslq_f32(m, a, b); }

  KVANT_INLINE M mask_and(M a, M b) { return vandq_u32(a, b); }
  KVANT_INLINE M mask_or(M a, M b) { return vorrq_u32(a, b); }
  KVANT_INLINE M mask_not(M a) { return vmvnq_u32(a); }
  KVANT_INLINE bool any(M a) { return vmaxvq_u32(a) != 0; }

  KVANT_INLINE I isplat(int32_t x) { return vdupq_n_s32(x); }
  KVANT_INLINE I iload(const int32_t* x) { return vld1q_s32(x); }
  KVANT_INLINE void istore(int32_t* x, I a) { vst1q_s32(x, a); }
  KVANT_INLINE I iadd(I a, I b) { return vaddq_s32(a, b); }
  KVANT_INLINE I isub(I a, I b) { return vsubq_s32(a, b); }
  KVANT_INLINE I iand(I a, I b) { return vandq_s32(a, b); }
  KVANT_INLINE I ior(I a, I b) { return vorrq_s32(a, b); }
  KVANT_INLINE I ixor(I a, I b) { return veorq_s32(a, b); }
  KVANT_INLINE I imin(I a, I b) { return vminq_s32(a, b); }
  KVANT_INLINE I imax(I a, I b) { return vmaxq_s32(a, b); }
  KVANT_INLINE M ieq(I a, I b) { return vceqq_s32(a, b); }
  KVANT_INLINE I iselect(M m, I a, I b) { return vbslq_s32(m, a, b); }
  template <int S> KVANT_INLINE I shl(I a) { return vshlq_n_s32(a, S); }
  template <int S> KVANT_INLINE I shr(I a) {
    // There is no shift by nothing.
    if constexpr (S == 0) return a;
    else return vreinterpretq_s32_u32(vshrq_n_u32(vreinterpretq_u32_s32(a), S));
  }
  KVANT_INLINE F to_f32(I a) { return vcvtq_f32_s32(a); }
  KVANT_INLINE I trunc(F a) {
    // vcvtq saturates and sends NaN to zero; vec.h promises INT32_MIN for both.
    const M fits = vandq_u32(vcgeq_f32(a, vdupq_n_f32(-0x1p31f)), vcltq_f32(a, vdupq_n_f32(0x1p31f)));
    return vbslq_s32(fits, vcvtq_s32_f32(a), vdupq_n_s32(INT32_MIN));
  }
  KVANT_INLINE I bits(F a) { return vreinterpretq_s32_f32(a); }
  KVANT_INLINE F from_bits(I a) { return vreinterpretq_f32_s32(a); }

  template <class Row>
  KVANT_INLINE void transpose4(Row&& row, float* out) {
    for (int quarter = 0; quarter < 16; quarter += 4) {
      const float32x4x2_t ab = vtrnq_f32(vld1q_f32(row(quarter)), vld1q_f32(row(quarter + 1)));
      const float32x4x2_t cd = vtrnq_f32(vld1q_f32(row(quarter + 2)), vld1q_f32(row(quarter + 3)));
      float* o = out + quarter;
      vst1q_f32(o, vcombine_f32(vget_low_f32(ab.val[0]), vget_low_f32(cd.val[0])));
      vst1q_f32(o + 16, vcombine_f32(vget_low_f32(ab.val[1]), vget_low_f32(cd.val[1])));
      vst1q_f32(o + 2 * 16, vcombine_f32(vget_high_f32(ab.val[0]), vget_high_f32(cd.val[0])));
      vst1q_f32(o + 3 * 16, vcombine_f32(vget_high_f32(ab.val[1]), vget_high_f32(cd.val[1])));
    }
  }
  template <class Row>
  KVANT_INLINE void transpose(Row&& row, int first, float* out) {
    for (int column = 0; column < 16; column += 4) {
      transpose4([&](int r) KVANT_LAMBDA { return row(r) + first + column; }, out + column * 16);
    }
  }

  template <I (*op)(I, I)>
  KVANT_INLINE I fold_each(const I (&rows)[4]) {
    const auto halve = [](I a, I b) { return op(vuzp1q_s32(a, b), vuzp2q_s32(a, b)); };
    return halve(halve(rows[0], rows[1]), halve(rows[2], rows[3]));
  }

  KVANT_INLINE void store_bytes(uint8_t* out, const I (&a)[4]) {
    const int16x8_t low = vuzp1q_s16(vreinterpretq_s16_s32(a[0]), vreinterpretq_s16_s32(a[1]));
    const int16x8_t high = vuzp1q_s16(vreinterpretq_s16_s32(a[2]), vreinterpretq_s16_s32(a[3]));
    vst1q_u8(out, vuzp1q_u8(vreinterpretq_u8_s16(low), vreinterpretq_u8_s16(high)));
  }
  KVANT_INLINE void store_four_bytes(uint8_t* out, I a, I b, I c, I d) {
    const I all[4] = {a, b, c, d};
    store_bytes(out, all);
  }

  KVANT_INLINE I load_u8(const uint8_t* x) {
    uint32_t four;
    __builtin_memcpy(&four, x, 4);
    return vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(four))))));
  }
  KVANT_INLINE F low_half(I a) { return vcvt_f32_f16(vreinterpret_f16_s16(vmovn_s32(a))); }
  KVANT_INLINE I lookup_bytes(const uint8_t* table, I a) {
    return vreinterpretq_s32_u8(vqtbl1q_u8(vld1q_u8(table), vreinterpretq_u8_s32(a)));
  }
  KVANT_INLINE void gather_pairs(const uint64_t* table, I index, I& low, I& high) {
    const uint64_t four[4] = {table[vgetq_lane_s32(index, 0)], table[vgetq_lane_s32(index, 1)],
                              table[vgetq_lane_s32(index, 2)], table[vgetq_lane_s32(index, 3)]};
    const I first = vreinterpretq_s32_u64(vld1q_u64(four)), second = vreinterpretq_s32_u64(vld1q_u64(four + 2));
    low = vuzp1q_s32(first, second);
    high = vuzp2q_s32(first, second);
  }
  KVANT_INLINE I gather(const uint32_t* table, I index) {
    const uint32_t four[4] = {table[vgetq_lane_s32(index, 0)], table[vgetq_lane_s32(index, 1)],
                              table[vgetq_lane_s32(index, 2)], table[vgetq_lane_s32(index, 3)]};
    return vreinterpretq_s32_u32(vld1q_u32(four));
  }

  static constexpr int kWideOffset = 0;
  static constexpr int kTiles = 1, kFloatColumns = 4, kColumns[] = {4, 4};
  static constexpr bool kSteady = false;
  static constexpr int dot_class(int max) { return max == 255 ? 255 : 127; }
  // Unsigned codes are at most 127, so signed bytes to the processor. Sixteen bytes of a column serve
  // four steps, one lane each.
  template <int kSteps, int kMax, class Sum, int kT, int kC>
  KVANT_INLINE void dot(const uint8_t* codes, int64_t stride, const uint8_t* q, const int32_t* start,
                        Sum (&sum)[kT][kC]) {
    static_assert(kSteps % 4 == 0);
    KVANT_UNROLL
    for (int t = 0; t < kT; ++t) {
      KVANT_UNROLL
      for (int c = 0; c < kC; ++c) {
        KVANT_UNROLL
        for (int p = 0; p < 4; ++p) sum[t][c].v[p] = vdupq_n_s32(start[c]);
      }
      KVANT_UNROLL
      for (int s = 0; s < kSteps; s += 4) {
        const int8_t* code = reinterpret_cast<const int8_t*>(codes + t * stride + 64 * s);
        int8x16_t x[kC];
        KVANT_UNROLL
        for (int c = 0; c < kC; ++c) x[c] = vld1q_s8(reinterpret_cast<const int8_t*>(q) + 32 * c + 4 * s);
        dot_lane<0>(code, x, sum[t]);
        dot_lane<1>(code + 64, x, sum[t]);
        dot_lane<2>(code + 128, x, sum[t]);
        dot_lane<3>(code + 192, x, sum[t]);
      }
    }
  }
  template <int kLane, class Sum, int kC>
  KVANT_INLINE void dot_lane(const int8_t* code, const int8x16_t (&x)[kC], Sum (&sum)[kC]) {
    KVANT_UNROLL
    for (int p = 0; p < 4; ++p) {
      const int8x16_t w = vld1q_s8(code + 16 * p);
      KVANT_UNROLL
      for (int c = 0; c < kC; ++c) sum[c].v[p] = vdotq_laneq_s32(sum[c].v[p], w, x[c], kLane);
    }
  }

  // The upper seven bits twice and the lowest one: there is no product of unsigned and signed bytes yet.
  KVANT_INLINE I dot_bytes(I sum, I u, I s) {
    const uint8x16_t bytes = vreinterpretq_u8_s32(u);
    const int8x16_t codes = vreinterpretq_s8_s32(s), half = vreinterpretq_s8_u8(vshrq_n_u8(bytes, 1));
    const int8x16_t last = vreinterpretq_s8_u8(vandq_u8(bytes, vdupq_n_u8(1)));
    return vdotq_s32(vdotq_s32(vdotq_s32(sum, codes, last), codes, half), codes, half);
  }
  KVANT_INLINE I sub_bytes(I a, I b) {
    return vreinterpretq_s32_s8(vsubq_s8(vreinterpretq_s8_s32(a), vreinterpretq_s8_s32(b)));
  }

  KVANT_INLINE void store_quads(uint8_t* out, int part, I a, I b, I c, I d) {
    const int32x4x2_t ab = vtrnq_s32(a, b), cd = vtrnq_s32(c, d);
    const I quads[4] = {vcombine_s32(vget_low_s32(ab.val[0]), vget_low_s32(cd.val[0])),
                        vcombine_s32(vget_low_s32(ab.val[1]), vget_low_s32(cd.val[1])),
                        vcombine_s32(vget_high_s32(ab.val[0]), vget_high_s32(cd.val[0])),
                        vcombine_s32(vget_high_s32(ab.val[1]), vget_high_s32(cd.val[1]))};
    for (int j = 0; j < 4; ++j) vst1q_s32(reinterpret_cast<int32_t*>(out + 64 * j + 16 * part), quads[j]);
  }

  KVANT_INLINE void lookup(const int8_t* table, int8_t* codes, int count) {
    const int8x16_t t = vld1q_s8(table);
    for (int i = 0; i < count; i += 16) {
      vst1q_s8(codes + i, vqtbl1q_s8(t, vreinterpretq_u8_s8(vld1q_s8(codes + i))));
    }
  }

  KVANT_INLINE F low_nibble(I a) { return to_f32(iand(a, isplat(15))); }

  KVANT_INLINE F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
  // x times +1 or -1, which is exact, added to what the lane is paired with.
  KVANT_INLINE void butterflies(F (&a)[4]) {
    const F pairs = {1, -1, 1, -1}, halves = {1, 1, -1, -1};
    for (int p = 0; p < 4; ++p) {
      a[p] = fma(a[p], pairs, vrev64q_f32(a[p]));
      a[p] = fma(a[p], halves, vextq_f32(a[p], a[p], 2));
    }
    for (int apart = 1; apart < 4; apart *= 2) {
      for (int p = 0; p < 4; ++p) {
        if (p & apart) continue;
        const F sum = add(a[p], a[p + apart]);
        a[p + apart] = sub(a[p], a[p + apart]);
        a[p] = sum;
      }
    }
  }
  KVANT_INLINE F swap_pairs(F a) { return vrev64q_f32(a); }

  // For kernels/probe.h: chains that hide the latency of a product, and values the compiler may not
  // reason about. probe_dot: each lane += 4 adjacent products.
  static constexpr int kProbeChains = 16;
  KVANT_INLINE I probe_dot(I sum, I a, I b) {
    return vdotq_s32(sum, vreinterpretq_s8_s32(a), vreinterpretq_s8_s32(b));
  }
  KVANT_INLINE void probe_hide(I& a) { asm volatile("" : "+w"(a)); }
  KVANT_INLINE void probe_hide(F& a) { asm volatile("" : "+w"(a)); }
};

}  // namespace
}  // namespace kvant
