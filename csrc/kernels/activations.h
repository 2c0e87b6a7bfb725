// Activations: rows of x as eight-bit blocks of 32, and the records the inner loops read.
#pragma once

#include "kernels/kernels.h"

namespace kvant {

// Below this a block is taken for zeros.
constexpr float kSmallestBlock = 0x1p-100f;

// q = x * (127 / largest) to nearest even, d = largest / 127, and the sums of q over each sixteen. A
// block with a NaN or an infinity has d = NaN and q = 0.
template <class V>
void quantize_row(const float* x, int64_t blocks, int8_t* q, float* d, int32_t* sums) noexcept {
  using I = typename V::I;
  constexpr int kLanes = V::kLanes, kVectors = 16 / kLanes;
  // Adding this rounds to an integer, found in the low bits.
  const auto magic = V::splat(kMagic);
  const auto base = V::splat_i(kMagicBits);
  for (int64_t first = 0; first < blocks; first += kLanes, x += 32 * kLanes, q += 32 * kLanes, d += kLanes) {
    const int count = blocks - first < kLanes ? int(blocks - first) : kLanes;
    I largest[kLanes];
    for (int b = 0; b < kLanes; ++b) {
      const float* block = x + 32 * (b < count ? b : 0);
      largest[b] = V::splat_i(0);
      for (int i = 0; i < 32; i += kLanes) {
        largest[b] = V::imax(largest[b], V::bits(V::load(block + i)) & V::splat_i(0x7fffffff));
      }
    }
    const auto amax = V::from_bits(V::largest_of_each(largest));
    const auto finite = amax <= V::splat(3.40282347e+38f);
    const auto small = amax < V::splat(kSmallestBlock);
    const auto zero = V::splat(0.0f);
    alignas(64) float id[kLanes], scale[kLanes];
    V::store(id, V::select(finite & !small, V::splat(127.0f) / amax, zero));
    const auto nan = V::from_bits(V::splat_i(0x7fc00000));
    V::store(scale, V::select(finite, V::select(small, zero, amax / V::splat(127.0f)), nan));
    I sum[2][kLanes];
    const auto round = [&](int b, int source, bool real, bool store) KVANT_LAMBDA {
      for (int half = 0; half < 2; ++half) {
        sum[half][b] = V::splat_i(0);
        for (int v = 0; v < kVectors; ++v) {
          const int i = 16 * half + v * kLanes;
          const auto scaled = real ? V::load(x + 32 * source + i) * V::splat(id[source]) : zero;
          const I bits = V::bits(scaled + magic);
          if (store) V::store_bytes(reinterpret_cast<uint8_t*>(q) + 32 * b + i, bits);
          sum[half][b] = sum[half][b] + (bits - base);
        }
      }
    };
    if (count == kLanes && !V::any(!finite)) {
      for (int b = 0; b < kLanes; ++b) round(b, b, true, true);
    } else {
      for (int b = 0; b < kLanes; ++b) {
        const int source = b < count ? b : 0;
        round(b, source, scale[source] == scale[source], b < count);
      }
    }
    alignas(64) int32_t totals[2][kLanes];
    for (int half = 0; half < 2; ++half) V::store_i(totals[half], V::sum_of_each(sum[half]));
    for (int b = 0; b < count; ++b) {
      d[b] = scale[b];
      sums[2 * (first + b)] = totals[0][b];
      sums[2 * (first + b) + 1] = totals[1][b];
    }
  }
}

// A record: one block of 32 of `columns` rows of x, all that a step of the inner loop reads.
//   q [columns][32], d f32 [columns], start i32 [groups][columns], for formats with minima also
//   qsum f32 [groups][columns]
// start is what sums of codes * q begin with: the bits of kMagic, and -offset * (sum of q over the
// group), which takes off what the offset of unsigned codes adds.
constexpr int record_bytes(int groups, bool has_min) { return 36 + 4 * groups * (has_min ? 2 : 1); }

KVANT_INLINE void write_record(const Activations& a, const int32_t* rows, int columns, int64_t block,
                               const ProductShape& shape, uint8_t* out) {
  float* d = reinterpret_cast<float*>(out + 32 * columns);
  auto* start = reinterpret_cast<int32_t*>(d + columns);
  auto* qsum = reinterpret_cast<float*>(start + shape.groups * columns);
  for (int c = 0; c < columns; ++c) {
    const int64_t at = rows[c] * a.blocks + block;
    memcpy(out + 32 * c, a.q + 32 * at, 32);
    d[c] = a.d[at];
    const int32_t *sums = a.sums + 2 * at, all = sums[0] + sums[1];
    for (int g = 0; g < shape.groups; ++g) {
      const int32_t sum = shape.groups == 1 ? all : sums[g];
      start[g * columns + c] = kMagicBits - shape.offset * sum;
      if (shape.has_min) qsum[g * columns + c] = float(sum);
    }
  }
}

// What a sum that began at kMagicBits has added up to.
template <class V>
KVANT_INLINE typename V::F sum_to_float(typename V::I sum) {
  return V::from_bits(sum) - V::splat(kMagic);
}

// Records of `columns` rows of a, for the blocks first .. first + blocks - 1 in order.
template <class V>
void write_records(const Activations& a, const int32_t* rows, int columns, int64_t first, int blocks,
                   const ProductShape& shape, uint8_t* out) noexcept {
  const int bytes = columns * record_bytes(shape.groups, shape.has_min);
  for (int b = 0; b < blocks; ++b) write_record(a, rows, columns, first + b, shape, out + b * bytes);
}

}  // namespace kvant
