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
KVANT_INLINE void score_rows(const AttendJob& job, const uint8_t* codes, const uint8_t* side, int row, float* scores,
                             NextPage& next) {
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
        ask(next);
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
void score_codes(const AttendJob& job, const uint8_t* codes, const uint8_t* side, int row, int rows, float* scores,
                 NextPage& next) noexcept {
  of_count<V::kMaxColumns[0]>(rows, [&](auto n) KVANT_LAMBDA {
    score_rows<V, C, decltype(n)::value>(job, codes ? codes : side, side, row, scores, next);
  });
}

// Rows whose weighted values are summed at once.
template <class V>
constexpr int kMixRows = V::kLanes == 1 ? 1 : V::Native::kParts == 1 ? 4 : 2;
constexpr int kMostMixRows = 8;

// Weights in eight bits, of every row and block, and what one of them is worth.
struct ByteWeights {
  alignas(64) uint8_t of[kMostMixRows * kMostKvBlocks][kPageTokens];
  alignas(64) float most[kMostMixRows * kMostKvBlocks][16];
  alignas(64) float unit[kMostMixRows * kMostKvBlocks + 16];
  alignas(64) float factor[kMostMixRows * kMostKvBlocks + 16];
  float min[kMostMixRows * kMostKvBlocks];
};

template <class V, class C>
KVANT_INLINE void weigh_values(const float* p, const KvScales<C>& scales, int blocks, int rows, ByteWeights& weights,
                               NextPage& next) {
  using F = typename V::F;
  constexpr int kLanes = V::kLanes, kVectors = kPageTokens / kLanes;
  const int count = rows * blocks;
  const auto size = [&](int b, F (&out)[kVectors]) KVANT_LAMBDA {
    for (int i = 0; i < kVectors; ++i) {
      out[i] = V::load_f16(scales.scale(b, i * kLanes));
      if constexpr (kSignedScale<C>) out[i] = V::abs(out[i]);
    }
  };
  for (int b = 0; b < blocks; ++b) {
    ask(next);
    F scale[kVectors];
    size(b, scale);
    for (int r = 0; r < rows; ++r) {
      const float* own = p + r * kPageTokens;
      F most = V::load(own) * scale[0];
      for (int i = 1; i < kVectors; ++i) most = V::max(V::load(own + i * kLanes) * scale[i], most);
      V::store(weights.most[r * blocks + b], most);
    }
  }
  for (int first = 0; first < count; first += kLanes) {
    typename V::I largest[kLanes];
    for (int l = 0; l < kLanes; ++l) {
      // Of numbers that are not negative the bits are ordered as they are.
      largest[l] = V::bits(V::load(weights.most[first + l < count ? first + l : count - 1]));
    }
    const F most = V::from_bits(V::largest_of_each(largest));
    const auto zero = V::splat(0.0f), top = V::splat(255.0f);
    const auto small = most < V::splat(kSmallestBlock);
    V::store(weights.factor + first, V::select(small, zero, top / most));
    V::store(weights.unit + first, V::select(small, zero, most / top));
  }
  const F magic = V::splat(kMagic);
  for (int b = 0; b < blocks; ++b) {
    F scale[kVectors], middle[kVectors];
    size(b, scale);
    if constexpr (C::kHasMin) {
      for (int i = 0; i < kVectors; ++i) {
        middle[i] = scale[i] * V::splat(float(value_offset<C>())) + V::load_f16(scales.min(b, i * kLanes));
      }
    }
    for (int r = 0; r < rows; ++r) {
      const float* own = p + r * kPageTokens;
      const int at = r * blocks + b;
      const F factor = V::splat(weights.factor[at]);
      for (int i = 0; i < kVectors; ++i) {
        const F weight = V::load(own + i * kLanes) * scale[i];
        V::store_bytes(weights.of[at] + i * kLanes, V::bits(weight * factor + magic));
      }
      if constexpr (C::kHasMin) {
        Sixteen<V> sum = splat16<V>(0.0f);
        for (int i = 0; i < kVectors; ++i) {
          auto& part = sum.v[i % Sixteen<V>::kPieces];
          part = part + V::load(own + i * kLanes) * middle[i];
        }
        weights.min[at] = sum16<V>(sum);
      }
    }
  }
}

template <class V, class C, int kRows>
KVANT_INLINE void mix_rows(const uint8_t* codes, const ByteWeights& weights, int row, int blocks, float* sums,
                           int64_t stride, NextPage& next) {
  using F = typename V::F;
  using I = typename V::I;
  for (int b = 0; b < blocks; ++b) {
    for (int lane = 0; lane < 16; lane += V::kLanes) {
      I sum[kRows][2];
      KVANT_UNROLL for (int r = 0; r < kRows; ++r) {
        KVANT_UNROLL for (int h = 0; h < 2; ++h) sum[r][h] = V::splat_i(0);
      }
      const uint8_t* block = codes + b * kBlockCodes + 4 * lane;
      const uint8_t* four = weights.of[row * blocks + b];
      for (int tile = 0; tile < kTiles; ++tile, block += int64_t(blocks) * kBlockCodes, four += kTileTokens) {
        ask(next);
        KVANT_UNROLL for (int quad = 0; quad < 4; ++quad) {
          I code[2];
          KVANT_UNROLL for (int h = 0; h < 2; ++h) {
            code[h] = V::load_i(reinterpret_cast<const int32_t*>(block + kStepBytes * (quad + 4 * h)));
          }
          KVANT_UNROLL for (int r = 0; r < kRows; ++r) {
            const I weight = V::splat_i(int32_t(load_u32(four + int64_t(r) * blocks * kPageTokens + 4 * quad)));
            KVANT_UNROLL for (int h = 0; h < 2; ++h) sum[r][h] = V::dot_bytes(sum[r][h], weight, code[h]);
          }
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
void mix_codes(const uint8_t* codes, const uint8_t* side, int side_blocks, int value_dim, int rows, const float* p,
               float* sums, int64_t stride, NextPage& next) noexcept {
  const int blocks = kv_blocks(value_dim);
  ByteWeights weights;
  weigh_values<V, C>(p, KvScales<C>(side, side_blocks), blocks, rows, weights, next);
  in_groups<kMixRows<V>>(rows, [&](int row, auto n) KVANT_LAMBDA {
    mix_rows<V, C, decltype(n)::value>(codes ? codes : side, weights, row, blocks, sums + row * stride, stride, next);
  });
}

}  // namespace kvant
