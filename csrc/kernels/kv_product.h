// Products with a page of quantized keys and of quantized values, in integers.
//
// Scores are those of multiply.h: q in eight bits by blocks of 32, for every block t = scale * (sum of products) and
// with minima t = fma(min, sum of q, t), score = fma(d, t, score). Then (score + bias) * scale of the softmax.
//
// Weights p of a page, with a block's scales s of values: w_j = p_j |s_j| become u_j = w_j * (255 / max w) rounded,
// and sums += (sum of u_j * code_j) * (max w / 255). Where there are minima codes are taken from the middle of their
// range, and the values there come after, as one sum of p_j * (min_j + middle * s_j).
#pragma once

#include "kernels/activations.h"
#include "kernels/groups.h"
#include "kernels/kv_page.h"
#include "kernels/sixteen.h"

namespace kvant {

// Tiles of keys that are multiplied with so many rows at once.
template <class V>
constexpr int score_tiles(int rows) {
  return V::kMaxTiles == 1 ? 1 : rows <= 2 ? 4 : 2;
}

template <class V, class C, int kRows>
KVANT_INLINE void score_rows(const AttendJob& job, const uint8_t* codes, const uint8_t* side, int row, float* scores) {
  using F = typename V::F;
  using I = typename V::I;
  constexpr int kT = score_tiles<V>(kRows), kRecord = kRows * record_bytes(1, C::kHasMin);
  const int blocks = kv_blocks(job.dim);
  const int64_t stride = int64_t(blocks) * kBlockCodes;  // from tile to tile
  const KvScales<C> scales(side, blocks);
  const uint8_t* records = job.records + int64_t(row) * blocks * record_bytes(1, C::kHasMin);
  const F factor = V::splat(job.scale);
  for (int tile = 0; tile < kTiles; tile += kT) {
    for (int lane = 0; lane < kTileTokens; lane += V::kLanes) {
      F total[kT][kRows];
      KVANT_UNROLL for (int t = 0; t < kT; ++t) {
        KVANT_UNROLL for (int c = 0; c < kRows; ++c) total[t][c] = V::splat(0.0f);
      }
      const uint8_t *record = records, *block = codes + tile * stride + 4 * lane;
      for (int b = 0; b < blocks; ++b, record += kRecord, block += kBlockCodes) {
        const auto* d = reinterpret_cast<const float*>(record + 32 * kRows);
        const auto* start = reinterpret_cast<const int32_t*>(d + kRows);
        const auto* qsum = reinterpret_cast<const float*>(start + kRows);
        I sum[kT][kRows];
        V::template dot<8, key_class<V, C>()>(block, stride, record, start, sum);
        F scale[kT], min[kT];
        KVANT_UNROLL for (int t = 0; t < kT; ++t) {
          scale[t] = V::load_f16(scales.scale(b, (tile + t) * kTileTokens + lane));
          if constexpr (C::kHasMin) min[t] = V::load_f16(scales.min(b, (tile + t) * kTileTokens + lane));
        }
        KVANT_UNROLL for (int c = 0; c < kRows; ++c) {
          const F size = V::splat(d[c]);
          KVANT_UNROLL for (int t = 0; t < kT; ++t) {
            F y = scale[t] * sum_to_float<V>(sum[t][c]);
            if constexpr (C::kHasMin) y = V::fma(min[t], V::splat(qsum[c]), y);
            total[t][c] = V::fma(size, y, total[t][c]);
          }
        }
      }
      KVANT_UNROLL for (int c = 0; c < kRows; ++c) {
        const F bias = V::splat(job.bias[row + c]);
        KVANT_UNROLL for (int t = 0; t < kT; ++t) {
          V::store(scores + c * kPageTokens + (tile + t) * kTileTokens + lane, (total[t][c] + bias) * factor);
        }
      }
    }
  }
}

// codes: null where the page's own serve.
template <class V, class C>
void score_codes(const AttendJob& job, const uint8_t* codes, const uint8_t* side, int row, int rows,
                 float* scores) noexcept {
  of_count<V::kMaxColumns[0]>(rows, [&](auto n) KVANT_LAMBDA {
    score_rows<V, C, decltype(n)::value>(job, codes ? codes : side, side, row, scores);
  });
}

// Rows whose weighted values are summed at once.
template <class V>
constexpr int kMixRows = V::kLanes == 1 ? 1 : V::Native::kParts == 1 ? 6 : 2;
constexpr int kMostMixRows = 8;

// Weights in eight bits, of every row and block, and what one of them is worth.
struct ByteWeights {
  alignas(64) uint8_t of[kMostMixRows * kMostKvBlocks][kPageTokens];
  alignas(64) float unit[kMostMixRows * kMostKvBlocks + 16];
  alignas(64) float factor[kMostMixRows * kMostKvBlocks + 16];
  float min[kMostMixRows * kMostKvBlocks];
};

template <class V, class C>
KVANT_INLINE void weigh_values(const float* p, const uint8_t* side, int blocks, int rows, ByteWeights& weights) {
  using F = typename V::F;
  constexpr int kLanes = V::kLanes;
  const KvScales<C> scales(side, blocks);
  const int count = rows * blocks;
  const auto weight = [&](int i, int j) KVANT_LAMBDA {
    F scale = V::load_f16(scales.scale(i % blocks, j));
    if constexpr (kSignedScale<C>) scale = V::abs(scale);
    return V::load(p + i / blocks * kPageTokens + j) * scale;
  };
  for (int first = 0; first < count; first += kLanes) {
    typename V::I largest[kLanes];
    for (int l = 0; l < kLanes; ++l) {
      const int i = first + l < count ? first + l : count - 1;
      F most = weight(i, 0);
      for (int j = kLanes; j < kPageTokens; j += kLanes) most = V::max(weight(i, j), most);
      // Of numbers that are not negative the bits are ordered as they are.
      largest[l] = V::bits(most);
    }
    const F most = V::from_bits(V::largest_of_each(largest));
    const auto zero = V::splat(0.0f), top = V::splat(255.0f);
    const auto small = most < V::splat(kSmallestBlock);
    V::store(weights.factor + first, V::select(small, zero, top / most));
    V::store(weights.unit + first, V::select(small, zero, most / top));
  }
  for (int i = 0; i < count; ++i) {
    const F factor = V::splat(weights.factor[i]), magic = V::splat(kMagic);
    for (int j = 0; j < kPageTokens; j += kLanes) V::store_bytes(weights.of[i] + j, V::bits(weight(i, j) * factor + magic));
    if constexpr (C::kHasMin) {
      Sixteen<V> sum = splat16<V>(0.0f);
      for (int j = 0; j < kPageTokens; j += 16) {
        each_piece<V>([&](int l, int at) KVANT_LAMBDA {
          const F middle = V::load_f16(scales.scale(i % blocks, j + at)) * V::splat(float(value_offset<C>())) +
                           V::load_f16(scales.min(i % blocks, j + at));
          sum.v[l] = sum.v[l] + V::load(p + i / blocks * kPageTokens + j + at) * middle;
        });
      }
      weights.min[i] = sum16<V>(sum);
    }
  }
}

template <class V, class C, int kRows>
KVANT_INLINE void mix_rows(const uint8_t* codes, const ByteWeights& weights, int row, int blocks, float* sums,
                           int64_t stride) {
  using F = typename V::F;
  using I = typename V::I;
  for (int b = 0; b < blocks; ++b) {
    for (int lane = 0; lane < 16; lane += V::kLanes) {
      I sum[kRows][2];
      KVANT_UNROLL for (int r = 0; r < kRows; ++r) {
        KVANT_UNROLL for (int h = 0; h < 2; ++h) sum[r][h] = V::splat_i(0);
      }
      for (int quad = 0; quad < kPageTokens / 4; ++quad) {
        const uint8_t* block = codes + (int64_t(quad / 4) * blocks + b) * kBlockCodes + kStepBytes * (quad % 4) + 4 * lane;
        I code[2];
        KVANT_UNROLL for (int h = 0; h < 2; ++h) {
          code[h] = V::load_i(reinterpret_cast<const int32_t*>(block + 4 * kStepBytes * h));
        }
        KVANT_UNROLL for (int r = 0; r < kRows; ++r) {
          const I four = V::splat_i(int32_t(load_u32(weights.of[(row + r) * blocks + b] + 4 * quad)));
          KVANT_UNROLL for (int h = 0; h < 2; ++h) sum[r][h] = V::dot_bytes(sum[r][h], four, code[h]);
        }
      }
      KVANT_UNROLL for (int r = 0; r < kRows; ++r) {
        const int i = (row + r) * blocks + b;
        const F unit = V::splat(weights.unit[i]);
        KVANT_UNROLL for (int h = 0; h < 2; ++h) {
          float* to = sums + r * stride + kKvBlock * b + 16 * h + lane;
          F y = V::fma(V::to_f32(sum[r][h]), unit, V::load(to));
          if constexpr (C::kHasMin) y = y + V::splat(weights.min[i]);
          V::store(to, y);
        }
      }
    }
  }
}

template <class V, class C>
void mix_codes(const uint8_t* codes, const uint8_t* side, int value_dim, int rows, const float* p, float* sums,
               int64_t stride) noexcept {
  const int blocks = kv_blocks(value_dim);
  ByteWeights weights;
  weigh_values<V, C>(p, side, blocks, rows, weights);
  in_groups<kMixRows<V>>(rows, [&](int row, auto n) KVANT_LAMBDA {
    mix_rows<V, C, decltype(n)::value>(codes ? codes : side, weights, row, blocks, sums + row * stride, stride);
  });
}

}  // namespace kvant
