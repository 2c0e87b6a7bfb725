// Armv8.6 NEON with 8-bit matrix multiplication: NeonDotprod, with its dot() in blocks of two rows by
// two columns wherever there are two columns.
#pragma once

#include "simd/neon_dotprod.h"

namespace kvant {
namespace {

struct NeonI8mm : NeonDotprod {
  // smmla takes two runs of eight bytes from either side and adds their four products to
  // [w0 x0, w0 x1, w1 x0, w1 x1]. Two steps of codes zipped are eight codes of one row after those of
  // another. Sums are zipped column with column before, and unzipped to lanes behind.
  template <int kSteps, int kMax, class Sum, int kT, int kC>
  KVANT_INLINE void dot(const uint8_t* codes, int64_t stride, const uint8_t* q, const int32_t* start,
                        Sum (&sum)[kT][kC]) {
    constexpr int kPairs = kC / 2;
    if constexpr (kPairs == 0) return NeonDotprod::dot<kSteps, kMax>(codes, stride, q, start, sum);
    static_assert(kSteps % 2 == 0);
    KVANT_UNROLL
    for (int t = 0; t < kT; ++t) {
      I pair[kPairs + 1][8];
      KVANT_UNROLL
      for (int c = 0; c < kPairs; ++c) {
        const int32x2_t two = vld1_s32(start + 2 * c);
        KVANT_UNROLL
        for (int p = 0; p < 8; ++p) pair[c][p] = vcombine_s32(two, two);
      }
      if constexpr (kC % 2 == 1) {
        KVANT_UNROLL
        for (int p = 0; p < 4; ++p) sum[t][kC - 1].v[p] = vdupq_n_s32(start[kC - 1]);
      }
      KVANT_UNROLL
      for (int s = 0; s < kSteps; s += 2) {
        const auto* x = reinterpret_cast<const int8_t*>(q) + 4 * s;
        int8x16_t two[kPairs + 1];
        KVANT_UNROLL
        for (int c = 0; c < kPairs; ++c) two[c] = vcombine_s8(vld1_s8(x + 64 * c), vld1_s8(x + 64 * c + 32));
        const auto* code = reinterpret_cast<const int32_t*>(codes + t * stride + 64 * s);
        KVANT_UNROLL
        for (int p = 0; p < 4; ++p) {
          const I first = vld1q_s32(code + 4 * p), second = vld1q_s32(code + 16 + 4 * p);
          const int8x16_t low = vreinterpretq_s8_s32(vzip1q_s32(first, second));
          const int8x16_t high = vreinterpretq_s8_s32(vzip2q_s32(first, second));
          KVANT_UNROLL
          for (int c = 0; c < kPairs; ++c) {
            pair[c][2 * p] = vmmlaq_s32(pair[c][2 * p], low, two[c]);
            pair[c][2 * p + 1] = vmmlaq_s32(pair[c][2 * p + 1], high, two[c]);
          }
          if constexpr (kC % 2 == 1) {
            const int8x8_t last = vld1_s8(x + 64 * kPairs);
            I& odd = sum[t][kC - 1].v[p];
            odd = vdotq_lane_s32(odd, vreinterpretq_s8_s32(first), last, 0);
            odd = vdotq_lane_s32(odd, vreinterpretq_s8_s32(second), last, 1);
          }
        }
      }
      KVANT_UNROLL
      for (int c = 0; c < kPairs; ++c) {
        KVANT_UNROLL
        for (int p = 0; p < 4; ++p) {
          sum[t][2 * c].v[p] = vuzp1q_s32(pair[c][2 * p], pair[c][2 * p + 1]);
          sum[t][2 * c + 1].v[p] = vuzp2q_s32(pair[c][2 * p], pair[c][2 * p + 1]);
        }
      }
    }
  }
};

}  // namespace
}  // namespace kvant
