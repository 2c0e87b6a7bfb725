// Attention over pages of keys and values, floats or halves (uint16_t), all arithmetic in f32. A row of queries goes through a chunk page
// by page, with the largest score M so far, the sum S and the weighted values R (Milakov and Gimelshein,
// "Online normalizer calculation for softmax", 2018):
//   s_j = (sum over d of q_d k_jd, one fma each, in order) * scale
//   m = max(M, s), a = exp(M - m), p_j = exp(s_j - m)
//   S = S * a + (sixteen sums of the p of a page, of which number l takes l, l + 16, ...; halves added)
//   R = R * a, then one fma for each key in order
// Keys a row does not see count for nothing: s = -inf, p = 0, no fma. A page of which it sees none is passed
// over. Chunks start from nothing and are merged in order, so it shows nowhere who computed which.
// A score of -inf has no weight; one that is NaN or +inf makes the row NaN.
#pragma once

#include "kernels/sixteen.h"

namespace kvant {

constexpr float kMinusInfinity = -__builtin_inff();

// The tile of sums in registers: rows, and sixteens of keys or of a value.
template <class V>
struct AttendTile {
  static constexpr bool kMany = V::kLanes == 16 && V::Native::kParts == 1;
  static constexpr int kRows = kMany ? 6 : V::kLanes == 1 ? 1 : 4, kSixteens = kMany ? 4 : 1;
};

template <int n>
struct Count {
  static constexpr int value = n;
};

// body(first, Count<n>) for groups of kMost, and one for the rest.
template <int kMost, class Body>
KVANT_INLINE void in_groups(int count, Body&& body) {
  int first = 0;
  for (; first + kMost <= count; first += kMost) body(first, Count<kMost>());
  if constexpr (kMost > 1) {
    if (first < count) in_groups<kMost - 1>(count - first, [&](int i, auto n) { body(first + i, n); });
  }
}

template <class V>
KVANT_INLINE typename V::F load_float(const float* x) {
  return V::load(x);
}
template <class V>
KVANT_INLINE typename V::F load_float(const uint16_t* x) {
  return V::load_f16(x);
}
template <class V>
KVANT_INLINE void store_float(float* x, typename V::F a) {
  V::store(x, a);
}
template <class V>
KVANT_INLINE void store_float(uint16_t* x, typename V::F a) {
  V::store_f16(x, a);
}

template <class V, class T>
KVANT_INLINE Sixteen<V> load16(const T* x) {
  Sixteen<V> all;
  each_piece<V>([&](int p, int first) { all.v[p] = load_float<V>(x + first); });
  return all;
}

template <class V>
KVANT_INLINE float first_lane(typename V::F x) {
  alignas(64) float lanes[V::kLanes];
  V::store(lanes, x);
  return lanes[0];
}

template <class V>
KVANT_INLINE float exp_of(float x) {
  return first_lane<V>(exp_nonpositive<V>(V::splat(x)));
}

// scores[r][j] of kRows rows and the keys of a page.
template <class V, int kRows, class T>
KVANT_INLINE void score_page(const float* const* q, const T* k, int dim, float scale, float* scores) {
  constexpr int kSixteens = AttendTile<V>::kSixteens;
  const auto factor = V::splat(scale);
  for (int j = 0; j < kPageTokens; j += 16 * kSixteens) {
    Sixteen<V> sum[kRows][kSixteens];
    KVANT_UNROLL for (int r = 0; r < kRows; ++r) {
      KVANT_UNROLL for (int c = 0; c < kSixteens; ++c) sum[r][c] = splat16<V>(0.0f);
    }
    for (int d = 0; d < dim; ++d) {
      Sixteen<V> key[kSixteens];
      KVANT_UNROLL for (int c = 0; c < kSixteens; ++c) key[c] = load16<V>(k + d * kPageTokens + j + 16 * c);
      KVANT_UNROLL for (int r = 0; r < kRows; ++r) {
        const auto x = V::splat(q[r][d]);
        KVANT_UNROLL for (int c = 0; c < kSixteens; ++c) {
          each_piece<V>([&](int p, int) { sum[r][c].v[p] = V::fma(x, key[c].v[p], sum[r][c].v[p]); });
        }
      }
    }
    KVANT_UNROLL for (int r = 0; r < kRows; ++r) {
      KVANT_UNROLL for (int c = 0; c < kSixteens; ++c) {
        float* to = scores + r * kPageTokens + j + 16 * c;
        each_piece<V>([&](int p, int first) { V::store(to + first, sum[r][c].v[p] * factor); });
      }
    }
  }
}

// sums[r] += p[r][j] * value j for keys begin .. end - 1, in order.
template <class V, int kRows, int kSixteens, class T>
KVANT_INLINE void mix_columns(const float* p, const T* v, int width, int begin, int end, int64_t stride,
                              float* sums) {
  Sixteen<V> sum[kRows][kSixteens];
  KVANT_UNROLL for (int r = 0; r < kRows; ++r) {
    KVANT_UNROLL for (int c = 0; c < kSixteens; ++c) {
      each_piece<V>([&](int l, int first) { sum[r][c].v[l] = V::load(sums + r * stride + 16 * c + first); });
    }
  }
  for (int j = begin; j < end; ++j) {
    Sixteen<V> value[kSixteens];
    KVANT_UNROLL for (int c = 0; c < kSixteens; ++c) value[c] = load16<V>(v + j * width + 16 * c);
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
KVANT_INLINE void mix_page(const float* p, const T* v, int width, int begin, int end, int64_t stride, float* sums) {
  constexpr int kSixteens = AttendTile<V>::kSixteens;
  if (begin >= end) return;
  in_groups<kSixteens>(width / 16, [&](int first, auto n) {
    mix_columns<V, kRows, decltype(n)::value>(p, v + 16 * first, width, begin, end, stride, sums + 16 * first);
  });
}

// Of one row; no inline, because it stands wherever rows see different keys.
template <class V, class T>
void mix_row(const float* p, const T* v, int width, int begin, int end, float* sums) noexcept {
  mix_page<V, 1>(p, v, width, begin, end, 0, sums);
}

template <class V>
KVANT_INLINE void scale_sums(float* sums, int width, float factor) {
  if (factor == 1.0f) return;
  for (int i = 0; i < width; i += V::kLanes) V::store(sums + i, V::load(sums + i) * V::splat(factor));
}

// Turns scores into weights, and brings the state to the new largest score.
template <class V>
KVANT_INLINE void weigh_page(float* scores, int begin, int end, int width, float* state) {
  for (int j = 0; j < begin; ++j) scores[j] = kMinusInfinity;
  for (int j = end; j < kPageTokens; ++j) scores[j] = kMinusInfinity;
  Sixteen<V> largest = splat16<V>(kMinusInfinity);
  for (int j = 0; j < kPageTokens; j += 16) {
    each_piece<V>([&](int p, int first) { largest.v[p] = V::max(V::load(scores + j + first), largest.v[p]); });
  }
  const auto larger = [](float a, float b) { return a > b ? a : b; };
  const float before = state[0], max = larger(reduce16<V>(largest, larger), before);
  if (max == kMinusInfinity) {
    // Nothing but -inf so far, from which a difference would be NaN; or a NaN, which the sum shall be.
    for (int j = begin; j < end; ++j) {
      if (scores[j] == kMinusInfinity) scores[j] = 0.0f;
      state[1] += scores[j];
    }
    return;
  }
  Sixteen<V> sum = splat16<V>(0.0f);
  for (int j = 0; j < kPageTokens; j += 16) {
    each_piece<V>([&](int p, int first) {
      const auto e = exp_nonpositive<V>(V::load(scores + j + first) - V::splat(max));
      V::store(scores + j + first, e);
      sum.v[p] = sum.v[p] + e;
    });
  }
  const float a = exp_of<V>(before - max);
  state[0] = max;
  state[1] = state[1] * a + sum16<V>(sum);
  scale_sums<V>(state + kStateHead, width, a);
}

// The keys of a page that a token sees.
struct Seen {
  int begin, end;
};

KVANT_INLINE Seen seen_of(const AttendJob& job, int64_t row, int64_t page) {
  const int64_t last = job.position + row / job.group + 1 - page * kPageTokens, first = last - job.window;
  return {int(first < 0 ? 0 : first < kPageTokens ? first : kPageTokens),
          int(last < 0 ? 0 : last < kPageTokens ? last : kPageTokens)};
}

template <class V, class T>
void attend_chunk(const AttendJob& job, int64_t first, int rows, int64_t chunk, float* scores, float* states) noexcept {
  const int64_t stride = kStateHead + job.width;
  for (int r = 0; r < rows; ++r) {
    memset(states + r * stride, 0, size_t(stride) * 4);
    states[r * stride] = kMinusInfinity;
  }
  for (int64_t page = chunk * kChunkPages; page < (chunk + 1) * kChunkPages; ++page) {
    // Later tokens see later keys: the rows that see any of a page follow each other.
    int from = 0, to = rows;
    const auto blind = [&](int r) {
      const Seen seen = seen_of(job, first + r, page);
      return seen.begin >= seen.end;
    };
    while (from < to && blind(from)) ++from;
    while (from < to && blind(to - 1)) --to;
    const T* k = static_cast<const T*>(job.k) + page * job.dim * kPageTokens;
    const T* v = static_cast<const T*>(job.v) + page * job.width * kPageTokens;
    in_groups<AttendTile<V>::kRows>(to - from, [&](int group, auto n) {
      constexpr int kRows = decltype(n)::value;
      const int at = from + group;
      float* weights = scores + at * kPageTokens;
      float* state = states + at * stride;
      const float* q[kRows];
      Seen seen[kRows];
      Seen all = {0, kPageTokens};  // by all rows of the group
      for (int r = 0; r < kRows; ++r) {
        const int64_t row = first + at + r;
        q[r] = job.q + row / job.group * job.token_stride + row % job.group * job.head_stride;
        seen[r] = seen_of(job, row, page);
        if (seen[r].begin > all.begin) all.begin = seen[r].begin;
        if (seen[r].end < all.end) all.end = seen[r].end;
      }
      if (all.end < all.begin) all.end = all.begin;
      score_page<V, kRows>(q, k, job.dim, job.scale, weights);
      for (int r = 0; r < kRows; ++r) {
        weigh_page<V>(weights + r * kPageTokens, seen[r].begin, seen[r].end, job.width, state + r * stride);
        const int end = seen[r].end < all.begin ? seen[r].end : all.begin;
        mix_row<V>(weights + r * kPageTokens, v, job.width, seen[r].begin, end, state + r * stride + kStateHead);
      }
      mix_page<V, kRows>(weights, v, job.width, all.begin, all.end, stride, state + kStateHead);
      for (int r = 0; r < kRows; ++r) {
        const int begin = seen[r].begin > all.end ? seen[r].begin : all.end;
        mix_row<V>(weights + r * kPageTokens, v, job.width, begin, seen[r].end, state + r * stride + kStateHead);
      }
    });
  }
}

// With m the larger of both: S = S exp(M - m) + S' exp(M' - m), R = fma(R', exp(M' - m), R exp(M - m)).
template <class V>
void merge_states(float* states, const float* more, int rows, int width) noexcept {
  for (int r = 0; r < rows; ++r, states += kStateHead + width, more += kStateHead + width) {
    if (more[0] == kMinusInfinity && more[1] == 0.0f) continue;
    if (states[0] == kMinusInfinity && states[1] == 0.0f) {
      memcpy(states, more, size_t(kStateHead + width) * 4);
      continue;
    }
    const float max = states[0] > more[0] ? states[0] : more[0];
    const float a = exp_of<V>(states[0] - max), b = exp_of<V>(more[0] - max);
    states[0] = max;
    states[1] = states[1] * a + more[1] * b;
    for (int i = kStateHead; i < kStateHead + width; i += V::kLanes) {
      V::store(states + i, V::fma(V::load(more + i), V::splat(b), V::load(states + i) * V::splat(a)));
    }
  }
}

// R * (1 / S); zeros where no key was seen.
template <class V>
void finish_state(const float* state, const float* sink, int dim, float* out) noexcept {
  if (state[0] == kMinusInfinity && state[1] == 0.0f) {
    memset(out, 0, size_t(dim) * 4);
    return;
  }
  float sum = state[1], factor = 1.0f;
  if (sink) {
    const float max = state[0] > *sink ? state[0] : *sink;
    factor = exp_of<V>(state[0] - max);
    sum = sum * factor + exp_of<V>(*sink - max);
  }
  const auto a = V::splat(factor), share = V::splat(1.0f) / V::splat(sum);
  int i = 0;
  for (; i + V::kLanes <= dim; i += V::kLanes) {
    V::store(out + i, canonical<V>(V::load(state + kStateHead + i) * a * share));
  }
  if (i >= dim) return;
  alignas(64) float last[V::kLanes];
  V::store(last, canonical<V>(V::load(state + kStateHead + i) * a * share));
  memcpy(out + i, last, size_t(dim - i) * 4);
}

template <class V, class T>
void append_token(const float* k, int dim, void* k_page, const float* v, int value_dim, int width, void* v_page,
                  int token) noexcept {
  const auto sixteen = [](const float* x, int count, T* out) {
    alignas(64) float full[16] = {};
    if (count > 0) memcpy(full, x, size_t(count) * 4);
    each_piece<V>([&](int, int first) { store_float<V>(out + first, canonical<V>(V::load(full + first))); });
  };
  alignas(64) T column[16];
  for (int d = 0; d < dim; d += 16) {
    const int count = dim - d < 16 ? dim - d : 16;
    sixteen(k + d, count, column);
    for (int i = 0; i < count; ++i) static_cast<T*>(k_page)[(d + i) * kPageTokens + token] = column[i];
  }
  for (int d = 0; d < width; d += 16) {
    const int left = value_dim - d;
    sixteen(v + d, left < 16 ? left : 16, static_cast<T*>(v_page) + token * width + d);
  }
}

}  // namespace kvant
