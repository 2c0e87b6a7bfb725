// Rows to codes of a codebook: u = x * sqrt(D / |x|^2), each element its nearest centroid c, and one scale for the row:
//   norm      sqrt(|x|^2 / |c|^2)     the norm is kept
//   unbiased  |x|^2 / <c, x>          the projection on x is kept (EDEN, Vargaftik et al. 2022)
//   least     <c, x> / |c|^2          the error is least
// Sums over a row are sixteen, as in ops.h.
#pragma once

#include "kernels/kv_page.h"
#include "kernels/sixteen.h"

namespace kvant {

// Rows whose squares add up to less are zeros.
constexpr float kSmallestRow = 0x1p-100f;

// term(i) for the sixteen elements from i on, a piece at a time
template <class V, class Term>
KVANT_INLINE float sum_row(int count, Term&& term) {
  Sixteen<V> sum = splat16<V>(0.0f);
  for (int i = 0; i < count; i += 16) {
    each_piece<V>([&](int p, int first) KVANT_LAMBDA { sum.v[p] = sum.v[p] + term(i + first); });
  }
  return sum16<V>(sum);
}

template <class V>
KVANT_INLINE float root(float x) {
  alignas(64) float lanes[V::kLanes];
  V::store(lanes, V::sqrt(V::splat(x)));
  return lanes[0];
}

template <class V, class C>
void encode_codebook(const float* x, int rows, int dim, KvRule rule, const KvRows& out) noexcept {
  const int blocks = kv_blocks(dim), width = blocks * kKvBlock;
  constexpr int kSteps = (1 << C::kBits) - 1;
  const float least = float(C::kTable[kSteps / 2 + 1]);  // what the zeros behind a row become
  for (int r = 0; r < rows; ++r, x += width) {
    uint8_t* codes = out.codes + int64_t(r) * width;
    const float squares = sum_row<V>(width, [&](int i) KVANT_LAMBDA { return V::load(x + i) * V::load(x + i); });
    const bool zero = squares < kSmallestRow;
    const auto unit = V::splat(zero ? 0.0f : root<V>(float(dim) / squares));
    for (int i = 0; i < width; i += V::kLanes) {
      const auto u = V::load(x + i) * unit;
      auto code = V::splat_i(0);
      KVANT_UNROLL
      for (int k = 0; k < kSteps; ++k) {
        code = code + V::select(u >= V::splat(C::kSteps[k]), V::splat_i(1), V::splat_i(0));
      }
      V::store_bytes(codes + i, code);
    }
    alignas(64) int8_t values[kMostKvDim + kKvBlock];
    memcpy(values, codes, size_t(width));
    V::lookup(C::kTable, values, width);
    const auto value = [&](int i) KVANT_LAMBDA { return V::load_i8(values + i); };
    float size = 1.0f, along = 1.0f;
    if (rule != KvRule::unbiased) {
      size = sum_row<V>(width, [&](int i) KVANT_LAMBDA { return value(i) * value(i); }) - float(width - dim) * (least * least);
    }
    if (rule != KvRule::norm) along = sum_row<V>(width, [&](int i) KVANT_LAMBDA { return value(i) * V::load(x + i); });
    const float scale = zero                        ? 0.0f
                        : rule == KvRule::norm      ? root<V>(squares / size)
                        : rule == KvRule::unbiased ? squares / along
                                                    : along / size;
    const uint16_t half = f32_to_f16(scale);
    out.scales[r * blocks] = squares <= 3.40282347e+38f ? half : 0x7c00;
  }
}

}  // namespace kvant
