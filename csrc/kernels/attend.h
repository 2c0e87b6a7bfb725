// Attention over pages of keys and values (kv_page.h; of floats: keys [dim][token], values [token][width]), products
// with quantized ones as kv_product.h has them, all else in f32. A row of queries goes through a chunk page
// by page, with the largest score M so far, the sum S and the weighted values R (Milakov and Gimelshein,
// "Online normalizer calculation for softmax", 2018):
//   s_j = (q . k_j + bias) * scale, of floats one fma each in order; cap * tanh(s_j / cap) where there is a cap
//   m = max(M, s), a = exp(M - m), p_j = exp(s_j - m)
//   S_l = S_l * a + (p_l + p_l+16 + p_l+32 + p_l+48), sixteen sums whose halves are added in the end
//   R = R * a, then the page's values: of floats one fma for each key in order
// Keys a row does not see count for nothing: s = -inf, p = 0, no fma. A page of which it sees none is passed
// over. Of a quantized cache a row may see some keys exactly, from pages of halves beside: their scores take the place
// of those of the codes, and their values are added last. Chunks start from nothing and are merged in order, so it
// shows nowhere who computed which. A score of -inf has no weight; one that is NaN or +inf makes the row NaN.
#pragma once

#include "kernels/attend_states.h"
#include "kernels/kv_floats.h"
#include "kernels/kv_product.h"

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
KVANT_INLINE void mix_columns(const float* p, const T* v, int width, int begin, int end, int64_t stride,
                              float* sums, NextPage& next) {
  Sixteen<V> sum[kRows][kSixteens];
  KVANT_UNROLL for (int r = 0; r < kRows; ++r) {
    KVANT_UNROLL for (int c = 0; c < kSixteens; ++c) {
      each_piece<V>([&](int l, int first) { sum[r][c].v[l] = V::load(sums + r * stride + 16 * c + first); });
    }
  }
  for (int j = begin; j < end; ++j) {
    if (j % 8 == 0) ask(next, 20);
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
KVANT_INLINE void mix_page(const float* p, const T* v, int width, int begin, int end, int64_t stride, float* sums,
                           NextPage& next) {
  constexpr int kSixteens = AttendTile<V>::kSixteens;
  if (begin >= end) return;
  in_groups<kSixteens>(width / 16, [&](int first, auto n) {
    mix_columns<V, kRows, decltype(n)::value>(p, v + 16 * first, width, begin, end, stride, sums + 16 * first, next);
  });
}

// Of one row; no inline, because it stands wherever rows see different keys.
template <class V, class T>
void mix_row(const float* p, const T* v, int width, int begin, int end, float* sums, NextPage& next) noexcept {
  mix_page<V, 1>(p, v, width, begin, end, 0, sums, next);
}

// Brings a state to a new largest score, one of those given, and returns it. Not inline: later pages hardly need it.
template <class V>
__attribute__((noinline)) float grow_largest(typename V::F largest, int width, float* state) noexcept {
  alignas(64) float lane[V::kLanes];
  V::store(lane, largest);
  for (int half = V::kLanes / 2; half > 0; half /= 2) {
    for (int l = 0; l < half; ++l) lane[l] = lane[l] > lane[l + half] ? lane[l] : lane[l + half];
  }
  const float max = lane[0];
  const auto a = V::splat(exp_of<V>(state[0] - max));
  for (int i = kStateSums; i < kStateHead + width; i += V::kLanes) V::store(state + i, V::load(state + i) * a);
  return state[0] = max;
}

// Turns scores into weights, and adds them to the sums of a state.
template <class V>
KVANT_INLINE void weigh_page(float* scores, int begin, int end, int width, float* state) {
  for (int j = 0; j < begin; ++j) scores[j] = kMinusInfinity;
  for (int j = end; j < kPageTokens; ++j) scores[j] = kMinusInfinity;
  float max = state[0];
  auto largest = V::splat(max);
  for (int j = 0; j < kPageTokens; j += V::kLanes) largest = V::max(V::load(scores + j), largest);
  if (V::any(V::splat(max) < largest)) max = grow_largest<V>(largest, width, state);
  if (max == kMinusInfinity) {
    // Nothing but -inf so far, from which a difference would be NaN; or a NaN, which the sum shall be.
    for (int j = 0; j < kPageTokens; ++j) {
      if (scores[j] == kMinusInfinity) scores[j] = 0.0f;
      state[kStateSums + j % 16] += scores[j];
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
  each_piece<V>([&](int p, int first) {
    V::store(state + kStateSums + first, V::load(state + kStateSums + first) + sum.v[p]);
  });
}

template <class V>
void cap_scores(float* scores, int rows, float cap, float inv_cap) noexcept {
  const auto one = V::splat(1.0f), factor = V::splat(inv_cap), most = V::splat(cap);
  for (int i = 0; i < rows * kPageTokens; i += V::kLanes) {
    const auto y = V::load(scores + i) * factor;
    const auto e = exp_nonpositive<V>(V::splat(-2.0f) * V::abs(y));
    V::store(scores + i, V::copysign((one - e) / (one + e), y) * most);
  }
}

// The keys of a page that a token sees, and which of them exactly: those below low and from high on.
struct Seen {
  int begin, end, low, high;
  KVANT_MEMBER bool none() const { return begin >= end; }
  KVANT_MEMBER bool exact() const { return begin < low || high < end; }
};

KVANT_INLINE int in_page(int64_t place) { return int(place < 0 ? 0 : place < kPageTokens ? place : kPageTokens); }

// end: of the keys that a row sees.
KVANT_INLINE Seen seen_of(const AttendJob& job, int64_t end, int64_t page) {
  const int64_t at = page * kPageTokens;
  Seen seen = {in_page(end - job.window - at), in_page(end - at), 0, kPageTokens};
  if (job.sink > 0) seen.low = in_page(job.sink - at);
  if (job.near() && page >= job.first_exact) {
    const int64_t full = end - end % job.key_group, tail = end - job.tail;
    seen.high = in_page((tail < full ? tail : full) - at);
  }
  if (seen.low > seen.end) seen.low = seen.end;
  if (seen.high < seen.low) seen.high = seen.low;
  return seen;
}

// Weighted values of a page of floats, keys begin .. end - 1 of each row.
template <class V, class T>
void mix_floats(const T* v, int width, const int (*ranges)[2], int rows, const float* p, float* sums, int64_t stride,
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
      mix_row<V>(weights + r * kPageTokens, v, width, from, until, to + r * stride, next);
    }
    mix_page<V, kRows>(weights, v, width, begin, end, stride, to, next);
    for (int r = 0; r < kRows; ++r) {
      const int from = ranges[at + r][0] > end ? ranges[at + r][0] : end;
      mix_row<V>(weights + r * kPageTokens, v, width, from, ranges[at + r][1], to + r * stride, next);
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

KVANT_INLINE int64_t pieces_of(int64_t count, int64_t size) { return (count + size - 1) / size; }

// One page of a chunk, for all rows of a job that see any of it.
template <class V>
struct PageStep {
  static constexpr int kMost = AttendTile<V>::kRows > V::kMaxColumns[0] ? AttendTile<V>::kRows : V::kMaxColumns[0];
  const AttendJob& job;
  const KvCodecKernels& keys;
  const KvCodecKernels& values;
  int64_t page;
  const uint8_t *k, *v;              // sides
  const uint8_t *key_codes, *value_codes;
  const uint8_t *exact, *sink;       // pages of halves, or null
  float* states;
  int64_t stride;
  const int64_t* ends;               // of the keys that each row sees
  NextPage* next;

  KVANT_MEMBER bool quantized_keys() const { return job.k_codec >= kFirstQuantized; }
  KVANT_MEMBER bool quantized_values() const { return job.v_codec >= kFirstQuantized; }

  // Rows row .. row + rows - 1.
  void run(int row, int rows, float* scratch) const noexcept {
    float *weights = scratch, *other = scratch + kMost * kPageTokens;
    Seen seen[kMost];
    bool exactly = false, any = false;
    for (int r = 0; r < rows; ++r) {
      seen[r] = seen_of(job, ends[row + r], page);
      any = any || !seen[r].none();
      exactly = exactly || (!seen[r].none() && seen[r].exact());
    }
    if (!any) return;
    if (quantized_keys()) {
      keys.score(job, key_codes, k, row, rows, weights, *next);
    } else {
      of_floats(job.k_codec, k, [&](const auto* floats) KVANT_LAMBDA { score_some(floats, row, rows, weights); });
    }
    if (exactly && job.exactly[0]) exact_scores(row, rows, seen, weights, other);
    exactly = exactly && job.exactly[1];
    if (job.cap > 0.0f) cap_scores<V>(weights, rows, job.cap, job.inv_cap);
    for (int r = 0; r < rows; ++r) {
      ask(*next, 9);
      if (seen[r].none()) memset(weights + r * kPageTokens, 0, 4 * kPageTokens);
      else weigh_page<V>(weights + r * kPageTokens, seen[r].begin, seen[r].end, int(stride) - kStateHead, states + (row + r) * stride);
    }
    float* sums = states + row * stride + kStateHead;
    if (!quantized_values()) {
      int ranges[kMost][2];
      for (int r = 0; r < rows; ++r) {
        if (!exactly) set_range(ranges[r], seen[r].begin, seen[r].end);
        else set_range(ranges[r], larger(seen[r].begin, seen[r].low), smaller(seen[r].end, seen[r].high));
      }
      of_floats(job.v_codec, v, [&](const auto* floats) KVANT_LAMBDA {
        mix_floats<V>(floats, kv_width(job.value_dim), ranges, rows, weights, sums, stride, *next);
      });
    } else if (!exactly) {
      values.mix(value_codes, v, job.value_dim, rows, weights, sums, stride, *next);
    } else {
      memcpy(other, weights, size_t(4 * kPageTokens) * rows);
      for (int r = 0; r < rows; ++r) {
        memset(other + r * kPageTokens, 0, size_t(4 * seen[r].low));
        memset(other + r * kPageTokens + seen[r].high, 0, size_t(4 * (kPageTokens - seen[r].high)));
      }
      values.mix(value_codes, v, job.value_dim, rows, other, sums, stride, *next);
    }
    if (exactly) exact_values(rows, seen, weights, sums);
  }

 private:
  KVANT_INLINE int larger(int a, int b) { return a > b ? a : b; }
  KVANT_INLINE int smaller(int a, int b) { return a < b ? a : b; }
  KVANT_INLINE void set_range(int* range, int begin, int end) {
    range[0] = begin;
    range[1] = end > begin ? end : begin;
  }

  template <class T>
  KVANT_MEMBER void score_some(const T* floats, int row, int rows, float* scores) const {
    of_count<AttendTile<V>::kRows>(rows, [&](auto n) KVANT_LAMBDA {
      score_floats<V, decltype(n)::value>(job, floats, row, scores, *next);
    });
  }

  // Scores of the keys that are seen exactly, in their places.
  KVANT_MEMBER void exact_scores(int row, int rows, const Seen* seen, float* scores, float* other) const {
    const uint8_t* both[] = {sink, exact};
    for (const uint8_t* from : both) {
      if (!from) continue;
      in_groups<AttendTile<V>::kRows>(rows, [&](int at, auto n) {
        constexpr int kRows = decltype(n)::value;
        score_floats<V, kRows>(job, reinterpret_cast<const Halves*>(from), row + at, other, *next);
        for (int r = 0; r < kRows; ++r) {
          const Seen& own = seen[at + r];
          const int begin = from == sink ? 0 : own.high, end = from == sink ? own.low : kPageTokens;
          memcpy(scores + (at + r) * kPageTokens + begin, other + r * kPageTokens + begin, size_t(4 * (end - begin)));
        }
      });
    }
  }

  KVANT_MEMBER void exact_values(int rows, const Seen* seen, const float* weights, float* sums) const {
    const uint8_t* both[] = {sink, exact};
    for (const uint8_t* from : both) {
      if (!from) continue;
      int ranges[kMost][2];
      for (int r = 0; r < rows; ++r) {
        if (from == sink) set_range(ranges[r], seen[r].begin, seen[r].low);
        else set_range(ranges[r], larger(seen[r].begin, seen[r].high), seen[r].end);
      }
      mix_floats<V>(reinterpret_cast<const Halves*>(from + job.exact_v_offset), kv_width(job.value_dim), ranges, rows,
                    weights, sums, stride, *next);
    }
  }
};

template <class V>
void attend_chunk(const AttendKernels& table, const AttendJob& job, int64_t chunk, uint8_t* scratch,
                  float* states) noexcept {
  const int64_t stride = state_size(job.value_dim);
  for (int r = 0; r < job.rows; ++r) {
    memset(states + r * stride, 0, size_t(stride) * 4);
    states[r * stride] = kMinusInfinity;
  }
  const KvCodecKernels &keys = table.codec[job.k_codec], &values = table.codec[job.v_codec];
  const int group = job.k_codec >= kFirstQuantized ? keys.group : AttendTile<V>::kRows;
  const int k_blocks = kv_blocks(job.dim), v_blocks = kv_blocks(job.value_dim);
  uint8_t *key_codes = scratch, *value_codes = key_codes + kPageTokens * kKvBlock * k_blocks;
  auto* weights = reinterpret_cast<float*>(value_codes + kPageTokens * kKvBlock * v_blocks);
  const int64_t last = job.first_page + job.pages;
  int64_t ends[kMostTaskRows];
  for (int64_t r = 0, token = job.first / job.group, left = job.first % job.group; r < job.rows; ++r) {
    ends[r] = job.causal ? job.position + token + 1 : job.keys;
    if (++left == job.group) left = 0, ++token;
  }
  NextPage next = {};
  // Of the first page a guess; of those behind it as many as the one before.
  int32_t units = int32_t(16 * (k_blocks + v_blocks) * (pieces_of(job.rows, group) + 1) + 9 * job.rows);
  const int64_t page_bytes = job.v_offset + kv_page_bytes(kKvCodecs.row[job.v_codec], job.value_dim, true);
  for (int64_t page = chunk * kChunkPages; page < (chunk + 1) * kChunkPages && page < last; ++page) {
    // Later tokens see later keys: the rows that see any of a page follow each other.
    int from = 0, to = job.rows;
    while (from < to && seen_of(job, ends[from], page).none()) ++from;
    while (from < to && seen_of(job, ends[to - 1], page).none()) --to;
    if (from == to || page < job.first_page) continue;
    const uint8_t* body = job.body[page - job.first_page];
    if (next.done > 0) units = next.done;
    next = {};
    if (page + 1 < last) {
      next.from = job.body[page + 1 - job.first_page];
      next.lines = int32_t(pieces_of(page_bytes, 64 * NextPage::kPlaces));
      next.rate = 4096 * next.lines / units + 1;
    }
    PageStep<V> step = {job,     keys,    values,  page,   body,   body + job.v_offset, nullptr, nullptr,
                        nullptr, nullptr, states, stride, ends,   &next};
    if (step.quantized_keys() && to - from > keys.direct[0]) {
      keys.expand[0](step.k, k_blocks, key_codes, next);
      step.key_codes = key_codes;
    }
    if (step.quantized_values() && to - from > values.direct[1]) {
      values.expand[1](step.v, v_blocks, value_codes, next);
      step.value_codes = value_codes;
    }
    if (page * kPageTokens < job.sink) step.sink = job.sinks[page];
    if (job.near() && page >= job.first_exact) step.exact = job.exact[page - job.first_exact];
    for (int row = from / group * group; row < to; row += group) {
      step.run(row, job.rows - row < group ? job.rows - row : group, weights);
    }
  }
}

}  // namespace kvant
