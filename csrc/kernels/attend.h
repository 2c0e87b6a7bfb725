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

#include "kernels/attend_floats.h"
#include "kernels/attend_reach.h"
#include "kernels/attend_states.h"
#include "kernels/kv_product.h"
#include "kernels/kv_view.h"

namespace kvant {

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

// What is added to products of what eight bits leave of queries.
constexpr float kNoBias[kMostTaskRows] = {};

KVANT_INLINE int64_t pieces_of(int64_t count, int64_t size) { return (count + size - 1) / size; }

// One page of a chunk, for all rows of a job that see any of it.
template <class V>
struct PageStep {
  static constexpr int kMost = AttendTile<V>::kRows > V::kMaxColumns[0] ? AttendTile<V>::kRows : V::kMaxColumns[0];
  const AttendJob& job;
  const AttendJob& low;
  const KvCodecKernels& keys;
  const KvCodecKernels& values;
  int64_t page;
  const uint8_t *k, *v;              // sides
  const uint8_t *key_codes, *value_codes;
  const uint8_t *exact, *sink;       // pages of halves, or null
  const uint8_t *exact_v, *sink_v;   // values of these
  float* states;
  int64_t stride;
  const Reach* reach;                // of each row
  NextPage* next;

  KVANT_MEMBER bool quantized_keys() const { return job.k_codec >= kFirstQuantized; }
  KVANT_MEMBER bool quantized_values() const { return job.v_codec >= kFirstQuantized; }
  KVANT_MEMBER int v_blocks() const { return kv_blocks(job.view ? job.dim : job.value_dim); }
  KVANT_MEMBER Columns columns() const {
    const int width = kv_width(job.value_dim);
    return job.view ? turned_columns(width) : Columns{width, width, 16};
  }

  // Rows row .. row + rows - 1.
  void run(int row, int rows, float* scratch) const noexcept {
    float *weights = scratch, *other = scratch + kMost * kPageTokens;
    Seen seen[kMost];
    bool exactly = false, any = false;
    for (int r = 0; r < rows; ++r) {
      seen[r] = seen_of(job, reach[row + r], page);
      any = any || !seen[r].none();
      exactly = exactly || (!seen[r].none() && seen[r].exact());
    }
    if (!any) return;
    if (quantized_keys()) {
      keys.score(job, key_codes, k, row, rows, weights, *next);
      if (job.low) add_low_scores(row, rows, weights, other);
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
      of_floats(job.view ? int(KvCodec::f32) : job.v_codec, v, [&](const auto* floats) KVANT_LAMBDA {
        mix_floats<V>(floats, columns(), ranges, rows, weights, sums, stride, *next);
      });
    } else if (!exactly) {
      values.mix[job.fine](value_codes, v, v_blocks(), job.value_dim, rows, weights, sums, stride, *next);
    } else {
      memcpy(other, weights, size_t(4 * kPageTokens) * rows);
      for (int r = 0; r < rows; ++r) {
        memset(other + r * kPageTokens, 0, size_t(4 * seen[r].low));
        memset(other + r * kPageTokens + seen[r].high, 0, size_t(4 * (kPageTokens - seen[r].high)));
      }
      values.mix[job.fine](value_codes, v, v_blocks(), job.value_dim, rows, other, sums, stride, *next);
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

  // What eight bits left of the queries.
  KVANT_MEMBER void add_low_scores(int row, int rows, float* scores, float* other) const {
    keys.score(low, key_codes, k, row, rows, other, *next);
    for (int i = 0; i < rows * kPageTokens; i += V::kLanes) V::store(scores + i, V::load(scores + i) + V::load(other + i));
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
    const uint8_t* both[] = {sink_v, exact_v};
    for (const uint8_t* from : both) {
      if (!from) continue;
      int ranges[kMost][2];
      for (int r = 0; r < rows; ++r) {
        if (from == sink_v) set_range(ranges[r], seen[r].begin, seen[r].low);
        else set_range(ranges[r], larger(seen[r].begin, seen[r].high), seen[r].end);
      }
      of_floats(int(job.view ? KvCodec::f32 : KvCodec::f16), from, [&](const auto* floats) KVANT_LAMBDA {
        mix_floats<V>(floats, columns(), ranges, rows, weights, sums, stride, *next);
      });
    }
  }
};

// Values of a page, and of what rows from .. to - 1 see exactly of it, where they are the first elements of keys.
template <class V>
void turn_page(PageStep<V>& step, int from, int to, uint8_t* codes, uint8_t* floats) noexcept {
  const AttendJob& job = step.job;
  const auto turn = [&](int codec, const uint8_t* keys) KVANT_LAMBDA {
    of_floats(codec, keys, [&](const auto* x) KVANT_LAMBDA {
      turn_floats<V>(x, job.dim, job.value_dim, reinterpret_cast<float*>(floats));
    });
  };
  if (step.quantized_keys()) {
    step.keys.turn(step.key_codes ? step.key_codes : step.k, step.k, kv_blocks(job.dim), kv_blocks(job.value_dim), codes,
                   *step.next);
    step.value_codes = codes;
    step.v = step.k;
  } else {
    turn(job.k_codec, step.k);
    step.v = floats;
  }
  bool exactly = false;
  for (int r = from; r < to; ++r) exactly = exactly || seen_of(job, step.reach[r], step.page).exact();
  const uint8_t** both[] = {&step.sink_v, &step.exact_v};
  for (const uint8_t** own : both) {
    if (!*own) continue;
    floats += turned_bytes(job.value_dim);
    if (exactly) turn(int(KvCodec::f16), *own);
    *own = floats;
  }
}

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
  uint8_t *turned = scratch, *key_codes = turned + (job.view ? 3 * turned_bytes(job.value_dim) : 0);
  uint8_t* value_codes = key_codes + kPageTokens * kKvBlock * k_blocks;
  auto* weights = reinterpret_cast<float*>(value_codes + kPageTokens * kKvBlock * v_blocks);
  const int64_t last = job.first_page + job.pages;
  AttendJob low = job;
  low.records = job.low;
  low.bias = kNoBias;
  Reach reach[kMostTaskRows];
  reach_of(job, reach);
  NextPage next = {};
  // Of the first page a guess; of those behind it as many as the one before.
  int32_t units = int32_t(16 * (k_blocks + v_blocks) * (pieces_of(job.rows, group) + 1) + 9 * job.rows);
  const int64_t page_bytes = job.view ? kv_page_bytes(kKvCodecs.row[job.k_codec], job.dim, false)
                                      : job.v_offset + kv_page_bytes(kKvCodecs.row[job.v_codec], job.value_dim, true);
  for (int64_t page = chunk * kChunkPages; page < (chunk + 1) * kChunkPages && page < last; ++page) {
    // Later tokens see later keys: the rows that see any of a page follow each other.
    int from = 0, to = job.rows;
    while (from < to && seen_of(job, reach[from], page).none()) ++from;
    while (from < to && seen_of(job, reach[to - 1], page).none()) --to;
    if (from == to || page < job.first_page) continue;
    const uint8_t* body = job.body[page - job.first_page];
    if (next.done > 0) units = next.done;
    next = {};
    if (page + 1 < last) {
      next.from = job.body[page + 1 - job.first_page];
      next.lines = int32_t(pieces_of(page_bytes, 64 * NextPage::kPlaces));
      next.rate = 4096 * next.lines / units + 1;
    }
    PageStep<V> step = {job,     low,     keys,    values,  page,    body,   body + job.v_offset, nullptr, nullptr,
                        nullptr, nullptr, nullptr, nullptr, states, stride, reach, &next};
    if (step.quantized_keys() && keys.expand[0] && (job.view || to - from > keys.direct[0])) {
      keys.expand[0](step.k, k_blocks, key_codes, next);
      step.key_codes = key_codes;
    }
    if (!job.view && step.quantized_values() && to - from > values.direct[1]) {
      values.expand[1](step.v, v_blocks, value_codes, next);
      step.value_codes = value_codes;
    }
    if (page * kPageTokens < job.sink) step.sink = job.sinks[page];
    if (job.near() && page >= job.first_exact) step.exact = job.exact[page - job.first_exact];
    if (step.sink) step.sink_v = step.sink + job.exact_v_offset;
    if (step.exact) step.exact_v = step.exact + job.exact_v_offset;
    if (job.view) turn_page<V>(step, from, to, value_codes, turned);
    for (int row = from / group * group; row < to; row += group) {
      step.run(row, job.rows - row < group ? job.rows - row : group, weights);
    }
  }
}

}  // namespace kvant
