// The product of one row of x, bound by memory: codes are multiplied as they come out of expand(),
// without a tile between. The sums, and their order, are those of multiply.h.
#pragma once

#include "kernels/activations.h"
#include "kernels/expand.h"
#include "kernels/sixteen.h"

namespace kvant {

// Takes the codes of one block of as many rows as V has lanes, and holds a sum for each group.
template <class V, class Format>
struct StreamBlock {
  using F = typename V::F;
  using I = typename V::I;
  static constexpr int kBlock = Format::kInfo.block, kGroup = Format::kInfo.group, kCount = kBlock / kGroup;
  static constexpr int kPerRecord = 32 / kGroup;
  static constexpr bool kHasMin = Format::kHasMin;
  static constexpr int kRecord = record_bytes(kPerRecord, kHasMin);

  const uint8_t* record;  // of one row of x, the first of this block
  const uint8_t* ahead;   // what comes after the next, asked for line by line between the codes
  I sum[kCount];
  F scale[kCount], neg_min[kHasMin ? kCount : 1];

  KVANT_MEMBER StreamBlock(const uint8_t* first, const uint8_t* ahead_) : record(first), ahead(ahead_) {
    each<kCount>([&]<int g>() KVANT_LAMBDA { sum[g] = V::splat_i(load_i32(tail(g) + 4 + 4 * (g % kPerRecord))); });
  }

  KVANT_MEMBER void put(int k, I codes) {
    constexpr int kLines = kTileRows * Format::kInfo.block_bytes / 64, kPuts = kBlock / 4;
    for (int line = k * kLines / kPuts; line < (k + 1) * kLines / kPuts; ++line) __builtin_prefetch(ahead + 64 * line);
    const I q = V::splat_i(load_i32(record + k / 8 * kRecord + k % 8 * 4));
    sum[4 * k / kGroup] = V::template dot4<V::dot_class(Format::kCodeMax)>(sum[4 * k / kGroup], codes, q);
  }
  KVANT_MEMBER void put_scale(int g, F s) { scale[g] = s; }
  KVANT_MEMBER void put_neg_min(int g, F m) { neg_min[g] = m; }

  KVANT_MEMBER F add_to(F y) const {
    F total = V::splat(0.0f);
    each<kCount>([&]<int g>() KVANT_LAMBDA {
      constexpr bool first = g % kPerRecord == 0, last = g % kPerRecord == kPerRecord - 1;
      const F s = sum_to_float<V>(sum[g]);
      total = first ? scale[g] * s : V::fma(scale[g], s, total);
      if constexpr (kHasMin) {
        const F qsum = V::splat(load_f32(tail(g) + 4 + 4 * kPerRecord + 4 * (g % kPerRecord)));
        total = V::fma(neg_min[g], qsum, total);
      }
      if constexpr (last) y = V::fma(V::splat(load_f32(tail(g))), total, y);
    });
    return y;
  }

 private:
  // d, starts and sums of the record of group g.
  KVANT_MEMBER const uint8_t* tail(int g) const { return record + g / kPerRecord * kRecord + 32; }
  KVANT_INLINE int32_t load_i32(const uint8_t* p) { return int32_t(load_u32(p)); }
  KVANT_INLINE float load_f32(const uint8_t* p) { return float_of(load_u32(p)); }
};

// y [16] += a packed chunk of sixteen rows times the records of one row of x.
template <class V, class Format>
void stream_chunk(const uint8_t* packed, int blocks, const uint8_t* records, float* y) noexcept {
  constexpr int kChunksAhead = 2;
  constexpr int kCodes = plane_bytes<CodePlanes<Format>>(), kScales = plane_bytes<ScalePlanes<Format>>();
  using Block = StreamBlock<V, Format>;
  const uint8_t* scales = packed + int64_t(blocks) * kTileRows * kCodes;
  for (int b = 0; b < blocks; ++b) {
    for (int lane = 0; lane < kTileRows; lane += V::kLanes) {
      constexpr int kBytes = kTileRows * Format::kInfo.block_bytes;
      Block out(records + b * (Format::kInfo.block / 32) * Block::kRecord,
                packed + (kChunksAhead * blocks + b) * kBytes);
      Format::template expand<V>(
          PackedBlock<V>{packed + b * kCodes * kTileRows, scales + b * kScales * kTileRows, lane}, out);
      V::store(y + lane, out.add_to(V::load(y + lane)));
    }
  }
}

// The same for floats, x as it is: one fma per element in order.
template <class V, class Format>
void stream_floats(const uint8_t* packed, int columns, const uint8_t* records, float* y) noexcept {
  constexpr int kBytesAhead = 4096;
  const auto* x = reinterpret_cast<const float*>(records);
  Sixteen<V> sums;
  each_piece<V>([&](int p, int first) { sums.v[p] = V::load(y + first); });
  each_float<V, Format>(packed, columns, [&](int k, int lane, auto w) KVANT_LAMBDA {
    if (lane == 0) __builtin_prefetch(packed + k * kTileRows * Format::kInfo.block_bytes + kBytesAhead);
    sums.v[lane / V::kLanes] = V::fma(w, V::splat(x[k]), sums.v[lane / V::kLanes]);
  });
  each_piece<V>([&](int p, int first) { V::store(y + first, sums.v[p]); });
}

}  // namespace kvant
