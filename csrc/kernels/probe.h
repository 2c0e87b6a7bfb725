// Probes: the most that memory and arithmetic give to loops such as ours. They load and store with
// the widest registers of the ISA and do nothing that a matrix product could not do as well.
// Memory is as ProbeKernels says; steps are positive. N is the ISA, one register at a time.
#pragma once

#include <cstring>

#include "kernels/kernels.h"

namespace kvant {

template <class N>
KVANT_INLINE uint32_t sum_of_words(typename N::I a) {
  int32_t words[N::kWidth];
  N::istore(words, a);
  uint32_t sum = 0;
  for (int l = 0; l < N::kWidth; ++l) sum += uint32_t(words[l]);
  return sum;
}

// Eight independent sums, shared out among the streams, so that additions never wait.
template <class N, int kStreams>
uint32_t probe_read(const uint8_t* p, int64_t bytes) noexcept {
  constexpr int kUnroll = 8 / kStreams;
  constexpr int64_t kStep = kUnroll * N::kWidth;
  const int64_t words = bytes / 4 / kStreams;
  const int32_t* stream[kStreams];
  typename N::I sums[kStreams][kUnroll];
  for (int s = 0; s < kStreams; ++s) {
    stream[s] = reinterpret_cast<const int32_t*>(p) + s * words;
    for (int u = 0; u < kUnroll; ++u) sums[s][u] = N::isplat(0);
  }
  for (int64_t i = 0; i < words; i += kStep) {
    for (int s = 0; s < kStreams; ++s) {
      for (int u = 0; u < kUnroll; ++u) {
        sums[s][u] = N::iadd(sums[s][u], N::iload(stream[s] + i + u * N::kWidth));
      }
    }
  }
  uint32_t sum = 0;
  for (int s = 0; s < kStreams; ++s) {
    for (int u = 0; u < kUnroll; ++u) sum += sum_of_words<N>(sums[s][u]);
  }
  return sum;
}

template <class N>
void probe_copy(const uint8_t* from, uint8_t* to, int64_t bytes, bool stream) noexcept {
  const auto* x = reinterpret_cast<const float*>(from);
  auto* y = reinterpret_cast<float*>(to);
  const int64_t count = bytes / 4;
  if (stream) {
    for (int64_t i = 0; i < count; i += 4 * N::kWidth) {
      for (int u = 0; u < 4 * N::kWidth; u += N::kWidth) N::stream(y + i + u, N::load(x + i + u));
    }
    N::fence();
  } else {
    for (int64_t i = 0; i < count; i += 4 * N::kWidth) {
      for (int u = 0; u < 4 * N::kWidth; u += N::kWidth) N::store(y + i + u, N::load(x + i + u));
    }
  }
}

template <class N>
uint64_t probe_store(uint8_t* to, int64_t bytes, const uint8_t* from, int64_t from_bytes) noexcept {
  constexpr int64_t kLine = 64, kAhead = 32 * kLine, kPiece = 1024;
  auto* y = reinterpret_cast<float*>(to);
  const typename N::F zero = N::splat(0.0f);
  // Bytes of `from` to a piece, as a fraction: what is left over is carried on.
  const int64_t pieces = bytes / kPiece;
  int64_t at = 0, due = 0;
  uint64_t all = 0;
  for (int64_t i = 0; i < pieces; ++i) {
    for (due += from_bytes; at * pieces < due && at < from_bytes; at += kLine) {
      __builtin_prefetch(from + at + kAhead);
      uint64_t word;
      memcpy(&word, from + at, sizeof word);
      all += word;
    }
    for (int64_t u = 0; u < kPiece / 4; u += N::kWidth) N::stream(y + i * (kPiece / 4) + u, zero);
  }
  N::fence();
  return all;
}

// Chains that began with one known value could be computed as one.
template <class N, class T>
KVANT_INLINE T hidden(T a) {
  N::probe_hide(a);
  return a;
}

template <class N>
double probe_dot(int64_t steps) noexcept {
  typename N::I a = N::isplat(0x01010101), b = a, sums[N::kProbeChains];
  N::probe_hide(a);
  for (auto& sum : sums) sum = hidden<N>(N::isplat(0));
  for (int64_t i = 0; i < steps; ++i) {
    for (auto& sum : sums) sum = N::probe_dot(sum, a, b);
  }
  uint32_t total = 0;
  for (auto& sum : sums) total += sum_of_words<N>(sum);
  return total;
}

template <class N>
double probe_fma(int64_t steps) noexcept {
  typename N::F a = N::splat(1.0f), b = a, sums[N::kProbeChains];
  N::probe_hide(a);
  for (auto& sum : sums) sum = hidden<N>(N::splat(0.0f));
  for (int64_t i = 0; i < steps; ++i) {
    for (auto& sum : sums) sum = N::fma(a, b, sum);
  }
  double total = 0;
  for (auto& sum : sums) {
    float lanes[N::kWidth];
    N::store(lanes, sum);
    for (int l = 0; l < N::kWidth; ++l) total += lanes[l];
  }
  return total;
}

}  // namespace kvant
