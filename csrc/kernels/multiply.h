// The inner loops of products: a few tiles of sixteen rows by a few columns, over one chunk.
//
// For each block of 32 columns of the weights, in order: exact integer sums per group, then
//   t = scale * sum                  first group; second: t = fma(scale, sum, t)
//   t = fma(-min, sum of q, t)       after each group, for formats with minima
//   y = fma(d, t, y)
// One accumulator per output and vectors run over rows, so that no order depends on the ISA. Sums start
// at the bits of kMagic and so are kMagic + sum as floats: kMagic is taken off, which is exact, or in a
// steady tile t = fma(scale, kMagic + sum, -scale * kMagic), which rounds once and saves a step.
#pragma once

#include "kernels/activations.h"
#include "kernels/expand.h"

namespace kvant {

template <class V, int kGroups, bool kHasMin, int kMax, bool kSteady, int kTiles, int kColumns>
KVANT_INLINE void multiply_panel(const RowTile* tiles, const uint8_t* record, int blocks, int lane,
                                 typename V::F (&sums)[kTiles][kColumns], Asking& asking) {
  using F = typename V::F;
  using I = typename V::I;
  constexpr int kSteps = 8 / kGroups, kRecord = kColumns * record_bytes(kGroups, kHasMin);
  constexpr int64_t kStride = sizeof(RowTile);
  for (int b = 0; b < blocks; ++b, record += kRecord) {
    asking.step();
    const auto* d = reinterpret_cast<const float*>(record + 32 * kColumns);
    const auto* start = reinterpret_cast<const int32_t*>(d + kColumns);
    const auto* qsum = reinterpret_cast<const float*>(start + kGroups * kColumns);
    F total[kTiles][kColumns];
    KVANT_UNROLL
    for (int g = 0; g < kGroups; ++g) {
      I sum[kTiles][kColumns];
      const int group = b * kGroups + g;
      V::template dot<kSteps, kMax>(tiles->codes[8 * b + kSteps * g][lane], kStride, record + 4 * kSteps * g,
                                    start + g * kColumns, sum);
      KVANT_UNROLL
      for (int t = 0; t < kTiles; ++t) {
        const F scale = V::load(&tiles[t].scale[group][lane]);
        KVANT_UNROLL
        for (int c = 0; c < kColumns; ++c) {
          if constexpr (kSteady) {
            if (g == 0) {
              total[t][c] = V::fma(scale, V::from_bits(sum[t][c]), V::load(&tiles[t].shift[b][lane]));
              continue;
            }
          }
          const F s = sum_to_float<V>(sum[t][c]);
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
}

// The same for floats: weights [column][row], x [column][kColumns], one fma per element in order.
template <class V, int kTiles, int kColumns>
KVANT_INLINE void multiply_floats_panel(const float* weights, const float* x, int columns, int lane,
                                        typename V::F (&sums)[kTiles][kColumns]) {
  using F = typename V::F;
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
}

// use(panel, lane, sums) for every panel and every vector of rows, with the sums it adds to.
template <class V, int kTiles, int kColumns, class Use>
KVANT_INLINE void each_panel(int panels, bool fresh, float* y, Use&& use) {
  using F = typename V::F;
  for (int panel = 0; panel < panels; ++panel, y += kColumns * kTiles * kTileRows) {
    for (int lane = 0; lane < kTileRows; lane += V::kLanes) {
      const auto place = [&](int t, int c) KVANT_LAMBDA { return y + (c * kTiles + t) * kTileRows + lane; };
      F sums[kTiles][kColumns];
      KVANT_UNROLL
      for (int t = 0; t < kTiles; ++t) {
        KVANT_UNROLL
        for (int c = 0; c < kColumns; ++c) sums[t][c] = fresh ? V::splat(0.0f) : V::load(place(t, c));
      }
      use(panel, lane, sums);
      KVANT_UNROLL
      for (int t = 0; t < kTiles; ++t) {
        KVANT_UNROLL
        for (int c = 0; c < kColumns; ++c) V::store(place(t, c), sums[t][c]);
      }
    }
  }
}

template <class V, int kGroups, bool kHasMin, int kMax, bool kSteady, int kTiles, int kColumns>
void multiply_chunk(const RowTile* tiles, const uint8_t* records, int blocks, int panels, bool fresh, float* y,
                    const Ahead& ahead) noexcept {
  const int panel_bytes = blocks * kColumns * record_bytes(kGroups, kHasMin);
  Asking asking(ahead);
  each_panel<V, kTiles, kColumns>(panels, fresh, y, [&](int panel, int lane, auto& sums) KVANT_LAMBDA {
    asking.panel();
    multiply_panel<V, kGroups, kHasMin, kMax, kSteady>(tiles, records + panel * panel_bytes, blocks, lane, sums,
                                                       asking);
  });
}

template <class V, int kTiles, int kColumns>
void multiply_floats(const float* weights, const float* x, int columns, int panels, bool fresh, float* y) noexcept {
  each_panel<V, kTiles, kColumns>(panels, fresh, y, [&](int panel, int lane, auto& sums) KVANT_LAMBDA {
    multiply_floats_panel<V>(weights, x + panel * columns * kColumns, columns, lane, sums);
  });
}

// A NaN becomes the canonical one, because processors differ.
template <class V>
void finish_sums(const float* sums, int64_t count, float* y) noexcept {
  const auto nan = V::from_bits(V::splat_i(0x7fc00000));
  int64_t i = 0;
  for (; i + V::kLanes <= count; i += V::kLanes) {
    const auto sum = V::load(sums + i);
    V::store(y + i, V::select(sum == sum, sum, nan));
  }
  for (; i < count; ++i) y[i] = sums[i] == sums[i] ? sums[i] : float_of(0x7fc00000u);
}

}  // namespace kvant
