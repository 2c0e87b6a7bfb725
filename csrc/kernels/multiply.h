// The inner loops of products: a few tiles of sixteen rows by a few columns, over one chunk.
//
// For each block of 32 columns of the weights, in order: exact integer sums per group, then
//   t = scale * sum                  first group; second: t = fma(scale, sum, t)
//   t = fma(-min, sum of q, t)       after each group, for formats with minima
//   y = fma(d, t, y)
// One accumulator per output and vectors run over rows, so that no order depends on the ISA.
#pragma once

#include "kernels/activations.h"
#include "kernels/expand.h"

namespace kvant {

template <class V, int kGroups, bool kHasMin, int kMax, int kTiles, int kColumns>
void multiply_chunk(const RowTile* tiles, const uint8_t* records, int blocks, float* y, const Ahead& ahead) noexcept {
  using F = typename V::F;
  using I = typename V::I;
  constexpr int kLanes = V::kLanes, kSteps = 8 / kGroups, kRecord = kColumns * record_bytes(kGroups, kHasMin);
  constexpr int64_t kStride = sizeof(RowTile);
  for (int lane = 0; lane < kTileRows; lane += kLanes) {
    const auto out = [&](int t, int c) KVANT_LAMBDA { return y + (c * kTiles + t) * kTileRows + lane; };
    F sums[kTiles][kColumns];
    KVANT_UNROLL
    for (int t = 0; t < kTiles; ++t) {
      KVANT_UNROLL
      for (int c = 0; c < kColumns; ++c) sums[t][c] = V::load(out(t, c));
    }
    const uint8_t* record = records;
    for (int b = 0; b < blocks; ++b, record += kRecord) {
      ask_ahead(ahead, b, blocks);
      const auto* d = reinterpret_cast<const float*>(record + 32 * kColumns);
      const auto* start = reinterpret_cast<const int32_t*>(d + kColumns);
      const auto* qsum = reinterpret_cast<const float*>(start + kGroups * kColumns);
      F total[kTiles][kColumns];
      KVANT_UNROLL
      for (int g = 0; g < kGroups; ++g) {
        I sum[kTiles][kColumns];
        KVANT_UNROLL
        for (int c = 0; c < kColumns; ++c) {
          KVANT_UNROLL
          for (int t = 0; t < kTiles; ++t) sum[t][c] = V::splat_i(start[g * kColumns + c]);
        }
        const int group = b * kGroups + g;
        V::template dot<kSteps, kMax>(tiles->codes[8 * b + kSteps * g][lane], kStride, record + 4 * kSteps * g, sum);
        KVANT_UNROLL
        for (int t = 0; t < kTiles; ++t) {
          const F scale = V::load(&tiles[t].scale[group][lane]);
          KVANT_UNROLL
          for (int c = 0; c < kColumns; ++c) {
            const F s = V::to_f32(sum[t][c]);
            total[t][c] = g == 0 ? scale * s : V::fma(scale, s, total[t][c]);
          }
          if constexpr (kHasMin) {
            const F neg_min = V::load(&tiles[t].neg_min[group][lane]);
            KVANT_UNROLL
            for (int c = 0; c < kColumns; ++c) {
              total[t][c] = V::fma(neg_min, V::splat(qsum[g * kColumns + c]), total[t][c]);
            }
          }
        }
      }
      KVANT_UNROLL
      for (int c = 0; c < kColumns; ++c) {
        const F scale = V::splat(d[c]);
        KVANT_UNROLL
        for (int t = 0; t < kTiles; ++t) sums[t][c] = V::fma(scale, total[t][c], sums[t][c]);
      }
    }
    KVANT_UNROLL
    for (int t = 0; t < kTiles; ++t) {
      KVANT_UNROLL
      for (int c = 0; c < kColumns; ++c) V::store(out(t, c), sums[t][c]);
    }
  }
}

// The same for floats: weights [column][row], x [column][kColumns], one fma per element in order.
template <class V, int kTiles, int kColumns>
void multiply_floats(const float* weights, const float* x, int columns, float* y) noexcept {
  using F = typename V::F;
  constexpr int kLanes = V::kLanes;
  for (int lane = 0; lane < kTileRows; lane += kLanes) {
    const auto out = [&](int t, int c) KVANT_LAMBDA { return y + (c * kTiles + t) * kTileRows + lane; };
    F sums[kTiles][kColumns];
    KVANT_UNROLL
    for (int t = 0; t < kTiles; ++t) {
      KVANT_UNROLL
      for (int c = 0; c < kColumns; ++c) sums[t][c] = V::load(out(t, c));
    }
    for (int k = 0; k < columns; ++k) {
      F w[kTiles];
      KVANT_UNROLL
      for (int t = 0; t < kTiles; ++t) w[t] = V::load(weights + (t * kChunk + k) * kTileRows + lane);
      KVANT_UNROLL
      for (int c = 0; c < kColumns; ++c) {
        const F value = V::splat(x[k * kColumns + c]);
        KVANT_UNROLL
        for (int t = 0; t < kTiles; ++t) sums[t][c] = V::fma(w[t], value, sums[t][c]);
      }
    }
    KVANT_UNROLL
    for (int t = 0; t < kTiles; ++t) {
      KVANT_UNROLL
      for (int c = 0; c < kColumns; ++c) V::store(out(t, c), sums[t][c]);
    }
  }
}

}  // namespace kvant
