// Products with pages of floats: keys [dim][token], values in columns of sixteen. One fma each, in order.
#pragma once

#include "kernels/groups.h"
#include "kernels/kv_floats.h"
#include "kernels/kv_page.h"
#include "kernels/sixteen.h"

namespace kvant {

// The tile of sums of floats in registers: rows, and sixteens of keys or of a value.
template <class V>
struct AttendTile {
  static constexpr bool kMany = V::kLanes == 16 && V::Native::kParts == 1;
  static constexpr int kRows = kMany ? 6 : V::kLanes == 1 ? 1 : 4, kSixteens = kMany ? 4 : 1;
};

template <class V, class T>
KVANT_INLINE Sixteen<V> load16(const T* x) {
  Sixteen<V> all;
  each_piece<V>([&](int p, int first) { all.v[p] = load_float<V>(x + first); });
  return all;
}

// scores[r][j] of kRows rows and the keys of a page. Not inline: among other code gcc keeps the sums in memory.
template <class V, int kRows, class T>
__attribute__((noinline)) void score_floats(const AttendJob& job, const T* k, int row, float* scores,
                                            NextPage& next) noexcept {
  constexpr int kSixteens = AttendTile<V>::kSixteens;
  const auto factor = V::splat(job.scale);
  const float* q = job.q + row * job.q_stride;
  for (int j = 0; j < kPageTokens; j += 16 * kSixteens) {
    Sixteen<V> sum[kRows][kSixteens];
    KVANT_UNROLL for (int r = 0; r < kRows; ++r) {
      KVANT_UNROLL for (int c = 0; c < kSixteens; ++c) sum[r][c] = splat16<V>(0.0f);
    }
    for (int d = 0; d < job.dim; ++d) {
      if (d % 8 == 0) ask(next, 20);
      Sixteen<V> key[kSixteens];
      KVANT_UNROLL for (int c = 0; c < kSixteens; ++c) key[c] = load16<V>(k + d * kPageTokens + j + 16 * c);
      KVANT_UNROLL for (int r = 0; r < kRows; ++r) {
        const auto x = V::splat(q[r * job.q_stride + d]);
        KVANT_UNROLL for (int c = 0; c < kSixteens; ++c) {
          each_piece<V>([&](int p, int) { sum[r][c].v[p] = V::fma(x, key[c].v[p], sum[r][c].v[p]); });
        }
      }
    }
    KVANT_UNROLL for (int r = 0; r < kRows; ++r) {
      KVANT_UNROLL for (int c = 0; c < kSixteens; ++c) {
        float* to = scores + r * kPageTokens + j + 16 * c;
        const auto bias = V::splat(job.bias[row + r]);
        each_piece<V>([&](int p, int first) { V::store(to + first, (sum[r][c].v[p] + bias) * factor); });
      }
    }
  }
}

// sums[r] += p[r][j] * value j for keys begin .. end - 1, in order.
template <class V, int kRows, int kSixteens, class T>
KVANT_INLINE void mix_columns(const float* p, const T* v, Columns at, int begin, int end, int64_t stride, float* sums,
                              NextPage& next) {
  Sixteen<V> sum[kRows][kSixteens];
  KVANT_UNROLL for (int r = 0; r < kRows; ++r) {
    KVANT_UNROLL for (int c = 0; c < kSixteens; ++c) {
      each_piece<V>([&](int l, int first) { sum[r][c].v[l] = V::load(sums + r * stride + 16 * c + first); });
    }
  }
  for (int j = begin; j < end; ++j) {
    if (j % 8 == 0) ask(next, 20);
    Sixteen<V> value[kSixteens];
    KVANT_UNROLL for (int c = 0; c < kSixteens; ++c) value[c] = load16<V>(v + j * at.token + c * at.sixteen);
    KVANT_UNROLL for (int r = 0; r < kRows; ++r) {
      const auto x = V::splat(p[r * kPageTokens + j]);
      KVANT_UNROLL for (int c = 0; c < kSixteens; ++c) {
        each_piece<V>([&](int l, int) { sum[r][c].v[l] = V::fma(x, value[c].v[l], sum[r][c].v[l]); });
      }
    }
  }
  KVANT_UNROLL for (int r = 0; r < kRows; ++r) {
    KVANT_UNROLL for (int c = 0; c < kSixteens; ++c) {
      each_piece<V>([&](int l, int first) { V::store(sums + r * stride + 16 * c + first, sum[r][c].v[l]); });
    }
  }
}

template <class V, int kRows, class T>
KVANT_INLINE void mix_page(const float* p, const T* v, Columns at, int begin, int end, int64_t stride, float* sums,
                           NextPage& next) {
  constexpr int kSixteens = AttendTile<V>::kSixteens;
  if (begin >= end) return;
  in_groups<kSixteens>(at.width / 16, [&](int first, auto n) {
    mix_columns<V, kRows, decltype(n)::value>(p, v + first * at.sixteen, at, begin, end, stride, sums + 16 * first, next);
  });
}

// Of one row; no inline, because it stands wherever rows see different keys.
template <class V, class T>
void mix_row(const float* p, const T* v, Columns at, int begin, int end, float* sums, NextPage& next) noexcept {
  mix_page<V, 1>(p, v, at, begin, end, 0, sums, next);
}

// Weighted values of a page of floats, keys begin .. end - 1 of each row.
template <class V, class T>
void mix_floats(const T* v, Columns place, const int (*ranges)[2], int rows, const float* p, float* sums, int64_t stride,
                NextPage& next) noexcept {
  in_groups<AttendTile<V>::kRows>(rows, [&](int at, auto n) {
    constexpr int kRows = decltype(n)::value;
    const float* weights = p + at * kPageTokens;
    float* to = sums + at * stride;
    int begin = 0, end = kPageTokens;  // of all rows
    for (int r = 0; r < kRows; ++r) {
      if (ranges[at + r][0] > begin) begin = ranges[at + r][0];
      if (ranges[at + r][1] < end) end = ranges[at + r][1];
    }
    if (end < begin) end = begin;
    for (int r = 0; r < kRows; ++r) {
      const int from = ranges[at + r][0], until = ranges[at + r][1] < begin ? ranges[at + r][1] : begin;
      mix_row<V>(weights + r * kPageTokens, v, place, from, until, to + r * stride, next);
    }
    mix_page<V, kRows>(weights, v, place, begin, end, stride, to, next);
    for (int r = 0; r < kRows; ++r) {
      const int from = ranges[at + r][0] > end ? ranges[at + r][0] : end;
      mix_row<V>(weights + r * kPageTokens, v, place, from, ranges[at + r][1], to + r * stride, next);
    }
  });
}

// body(pointer of the codec's type) for a side of floats.
template <class Body>
KVANT_INLINE void of_floats(int codec, const uint8_t* side, Body&& body) {
  if (codec == int(KvCodec::f32)) body(reinterpret_cast<const float*>(side));
  else if (codec == int(KvCodec::f16)) body(reinterpret_cast<const Halves*>(side));
  else body(reinterpret_cast<const Brains*>(side));
}

}  // namespace kvant
