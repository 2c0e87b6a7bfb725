// Keys with a scale and a minimum for each channel and group of tokens (formats/kv.h). In a page the codes lie as those
// of other keys; behind them the scales as halves, [group][channel], whole blocks of channels, and then the minima.
//
// A score has the scales on the side of the query: q' = q * scale, in eight bits by blocks of 32, and
//   score = (sum of q * (min + middle * scale), sixteen sums, halves added),
//   score = fma(d, sum of q' * (code - middle), score) for every block in order,
// codes from the middle of their range, so that what rounded queries lack is small.
#pragma once

#include "kernels/encode.h"
#include "kernels/kv_product.h"

namespace kvant {

template <class C>
constexpr int kMiddle = 1 << (C::kBits - 1);

// Where the scale and the minimum of a channel are.
template <class C>
struct ChannelScales {
  uint16_t* scales;
  int channels;

  KVANT_MEMBER ChannelScales(const uint8_t* side, int blocks)
      : scales(reinterpret_cast<uint16_t*>(const_cast<uint8_t*>(side) + int64_t(kTiles) * blocks * KvPlanes<C>::kBytes)),
        channels(blocks * kKvBlock) {}
  KVANT_MEMBER uint16_t* scale(int group, int channel) const { return scales + group * channels + channel; }
  KVANT_MEMBER uint16_t* min(int group, int channel) const {
    return scale(group + kPageTokens / C::kKeyGroup, channel);
  }
};

// A lane is a channel, so that a row of codes comes out for each token.
template <class V, class C>
void code_keys(const uint8_t* halves, int token, int dim, uint8_t* side) noexcept {
  constexpr int kGroup = C::kKeyGroup, kBytes = KvPlanes<C>::kBytes;
  static_assert(kGroup == kKvBlock && kGroup % kTileTokens == 0);
  const int blocks = kv_blocks(dim), group = token / kGroup;
  const ChannelScales<C> place(side, blocks);
  const auto* from = reinterpret_cast<const uint16_t*>(halves) + token;
  for (int b = 0; b < blocks; ++b) {
    alignas(64) uint8_t codes[kGroup][kKvBlock];
    for (int first = 0; first < kKvBlock; first += V::kLanes) {
      alignas(64) float rows[V::kLanes * kGroup], x[kGroup * V::kLanes];
      for (int l = 0; l < V::kLanes; ++l) {
        const int d = kKvBlock * b + first + l;
        for (int t = 0; t < kGroup; t += V::kLanes) {
          V::store(rows + l * kGroup + t, d < dim ? V::load_f16(from + d * kPageTokens + t) : V::splat(0.0f));
        }
      }
      transpose_blocks<V, kGroup>(rows, x);
      typename V::F min;
      const auto put = [&](int k, auto... code) KVANT_LAMBDA {
        int t = 4 * k;
        (V::store_bytes(codes[t++] + first, code), ...);
      };
      const auto scale = legacy_affine<V, (1 << C::kBits) - 1, true>(x, min, put);
      V::store_f16(place.scale(group, kKvBlock * b + first), scale);
      V::store_f16(place.min(group, kKvBlock * b + first), min);
    }
    for (int t = token; t < token + kGroup; ++t) {
      KeyPlace<C>::put(codes[t - token], side + (int64_t(t / kTileTokens) * blocks + b) * kBytes, t % kTileTokens);
    }
  }
}

template <class V, class C>
void decode_keys(const uint8_t* side, int token, int count, int dim, float* out, int64_t stride) noexcept {
  const int blocks = kv_blocks(dim);
  const ChannelScales<C> place(side, blocks);
  for (int r = 0; r < count; ++r, ++token, out += stride) {
    for (int b = 0; b < blocks; ++b) {
      uint8_t codes[kKvBlock];
      const uint8_t* tile = side + (int64_t(token / kTileTokens) * blocks + b) * KvPlanes<C>::kBytes;
      KeyPlace<C>::take(tile, token % kTileTokens, codes);
      for (int e = 0; e < kKvBlock; e += V::kLanes) {
        const int channel = kKvBlock * b + e;
        const auto scale = V::load_f16(place.scale(token / C::kKeyGroup, channel));
        const auto min = V::load_f16(place.min(token / C::kKeyGroup, channel));
        V::store(out + channel, V::to_f32(V::load_u8(codes + e)) * scale + min);
      }
    }
  }
}

// Queries times the scales of a group: [block][row], a record's q, d and start; and what the minima add.
struct ScaledQueries {
  static constexpr int kMost = kMostColumns * kMostKvBlocks;
  alignas(64) float x[kMost * kKvBlock];
  alignas(64) int8_t q[kMost * kKvBlock];
  alignas(64) float d[kMost];
  alignas(64) int32_t sums[2 * kMost], start[kMost];
  float low[kMostColumns];
};

template <class V, class C, int kRows>
KVANT_INLINE void scale_queries(const AttendJob& job, const uint8_t* side, int group, int row, ScaledQueries& out) {
  using S = Sixteen<V>;
  const int blocks = kv_blocks(job.dim);
  const ChannelScales<C> place(side, blocks);
  const float* q = job.q + row * job.q_stride;
  S low[kRows];
  KVANT_UNROLL for (int r = 0; r < kRows; ++r) low[r] = splat16<V>(0.0f);
  for (int b = 0; b < blocks; ++b, q += kKvBlock) {
    for (int e = 0; e < kKvBlock; e += V::kLanes) {
      const auto scale = V::load_f16(place.scale(group, kKvBlock * b + e));
      const auto middle = scale * V::splat(float(kMiddle<C>)) + V::load_f16(place.min(group, kKvBlock * b + e));
      KVANT_UNROLL for (int r = 0; r < kRows; ++r) {
        const auto x = V::load(q + r * job.q_stride + e);
        V::store(out.x + (b * kRows + r) * kKvBlock + e, x * scale);
        auto& part = low[r].v[e / V::kLanes % S::kPieces];
        part = part + x * middle;
      }
    }
  }
  KVANT_UNROLL for (int r = 0; r < kRows; ++r) out.low[r] = sum16<V>(low[r]);
  quantize_row<V>(out.x, kRows * blocks, out.q, out.d, out.sums);
  for (int i = 0; i < kRows * blocks; ++i) {
    out.start[i] = kMagicBits - kMiddle<C> * (out.sums[2 * i] + out.sums[2 * i + 1]);
  }
}

template <class V, class C, bool kPlanes, int kRows>
KVANT_INLINE void score_groups(const AttendJob& job, const uint8_t* codes, const uint8_t* side, int row, float* scores,
                               NextPage& next) {
  using F = typename V::F;
  using I = typename V::I;
  constexpr int kGroupTiles = C::kKeyGroup / kTileTokens, kT = V::kMaxTiles == 1 ? 1 : kGroupTiles;
  const int blocks = kv_blocks(job.dim);
  constexpr int kBytes = kPlanes ? KvPlanes<C>::kBytes : kBlockCodes;
  const int64_t stride = int64_t(blocks) * kBytes;  // from tile to tile
  const F factor = V::splat(job.scale);
  ScaledQueries queries;
  for (int tile = 0; tile < kTiles; tile += kT) {
    if (tile % kGroupTiles == 0) {
      ask(next, 6 * blocks * kRows);
      scale_queries<V, C, kRows>(job, side, tile / kGroupTiles, row, queries);
    }
    for (int lane = 0; lane < kTileTokens; lane += V::kLanes) {
      F total[kT][kRows];
      KVANT_UNROLL for (int t = 0; t < kT; ++t) {
        KVANT_UNROLL for (int c = 0; c < kRows; ++c) total[t][c] = V::splat(queries.low[c]);
      }
      const uint8_t* block = codes + tile * stride + 4 * lane;
      for (int b = 0; b < blocks; ++b, block += kBytes) {
        ask(next, kT * (kRows + (kPlanes ? 2 : 0)) + 3);
        const int at = b * kRows;
        I sum[kT][kRows];
        const auto* q = reinterpret_cast<const uint8_t*>(queries.q) + at * kKvBlock;
        score_block<V, C, kPlanes>(block, stride, lane, q, queries.start + at, sum);
        KVANT_UNROLL for (int c = 0; c < kRows; ++c) {
          const F size = V::splat(queries.d[at + c]);
          KVANT_UNROLL for (int t = 0; t < kT; ++t) {
            total[t][c] = V::fma(size, sum_to_float<V>(sum[t][c]), total[t][c]);
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

template <class V, class C>
void score_channels(const AttendJob& job, const uint8_t* codes, const uint8_t* side, int row, int rows, float* scores,
                    NextPage& next) noexcept {
  of_count<V::kMaxColumns[0]>(rows, [&](auto n) KVANT_LAMBDA {
    constexpr int kRows = decltype(n)::value;
    if (codes) score_groups<V, C, false, kRows>(job, codes, side, row, scores, next);
    else if constexpr (kPlaneScores<V, C> > 0) score_groups<V, C, true, kRows>(job, side, side, row, scores, next);
  });
}

}  // namespace kvant
