// States of rows on their way through pages: the largest score, sixteen sums of weights, the sums of weighted values.
#pragma once

#include "kernels/attend_kernels.h"
#include "kernels/sixteen.h"

namespace kvant {

constexpr float kMinusInfinity = -__builtin_inff();

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

template <class V>
KVANT_INLINE float sum_of_weights(const float* state) {
  Sixteen<V> sums;
  each_piece<V>([&](int p, int first) { sums.v[p] = V::load(state + kStateSums + first); });
  return sum16<V>(sums);
}

// Whether no key was seen; a NaN is one.
template <class V>
KVANT_INLINE bool is_empty(const float* state) {
  return state[0] == kMinusInfinity && sum_of_weights<V>(state) == 0.0f;
}

// With m the larger of both: S = fma(S', exp(M' - m), S exp(M - m)), and R likewise.
template <class V>
void merge_states(float* states, const float* more, int rows, int value_dim) noexcept {
  const int size = state_size(value_dim);
  for (int r = 0; r < rows; ++r, states += size, more += size) {
    if (is_empty<V>(more)) continue;
    if (is_empty<V>(states)) {
      memcpy(states, more, size_t(size) * 4);
      continue;
    }
    const float max = states[0] > more[0] ? states[0] : more[0];
    const float a = exp_of<V>(states[0] - max), b = exp_of<V>(more[0] - max);
    states[0] = max;
    for (int i = kStateSums; i < size; i += V::kLanes) {
      V::store(states + i, V::fma(V::load(more + i), V::splat(b), V::load(states + i) * V::splat(a)));
    }
  }
}

// R * (1 / S); zeros where no key was seen.
template <class V>
void finish_state(const float* state, const float* sink, int dim, float* out, float* lse) noexcept {
  if (is_empty<V>(state)) {
    memset(out, 0, size_t(dim) * 4);
    if (lse) *lse = sink ? *sink : kMinusInfinity;
    return;
  }
  float sum = sum_of_weights<V>(state), factor = 1.0f, max = state[0];
  if (sink) {
    max = state[0] > *sink ? state[0] : *sink;
    factor = exp_of<V>(state[0] - max);
    sum = sum * factor + exp_of<V>(*sink - max);
  }
  if (lse) *lse = sum == sum && max == max ? float(double(max) + log64(double(sum))) : float_of(0x7fc00000u);
  const auto a = V::splat(factor), share = V::splat(1.0f) / V::splat(sum);
  // A zero is +0: keys that a row does not see may have added one.
  const auto result = [&](int i) KVANT_LAMBDA {
    return canonical<V>(V::load(state + kStateHead + i) * a * share + V::splat(0.0f));
  };
  int i = 0;
  for (; i + V::kLanes <= dim; i += V::kLanes) {
    V::store(out + i, result(i));
  }
  if (i >= dim) return;
  alignas(64) float last[V::kLanes];
  V::store(last, result(i));
  memcpy(out + i, last, size_t(dim - i) * 4);
}

}  // namespace kvant
