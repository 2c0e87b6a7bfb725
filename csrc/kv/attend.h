// Attention over a cache of pages, and its growth: splits both into tasks for the pool. The result depends on
// queries, keys and values only. Arguments are checked by the caller (capi) once.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "kernels/kernels.h"

namespace kvant {

// One layer's keys and values: for each head, pages one behind the other.
struct KvPages {
  uint8_t *k, *v;
  Float type;  // f32 or f16
  int32_t heads, dim, value_dim;
  int64_t pages;  // of each head

  int32_t width() const { return (value_dim + 15) / 16 * 16; }
  int64_t page_bytes(int64_t numbers) const { return kPageTokens * numbers * (type == Float::f32 ? 4 : 2); }
  uint8_t* k_page(int64_t head, int64_t page) const { return k + (head * pages + page) * page_bytes(dim); }
  uint8_t* v_page(int64_t head, int64_t page) const { return v + (head * pages + page) * page_bytes(width()); }
};

// Floats [tokens][heads][dim], strides in floats.
struct Heads {
  const float* x;
  int64_t token_stride, head_stride;
};

// Tokens of keys and values from place `position` on.
Status kv_append(const KvPages& pages, int64_t position, int64_t tokens, const Heads& k, const Heads& v, int limit);

struct Attend {
  Heads q;
  int64_t tokens;
  int32_t heads;
  int64_t position;  // of the first token; each sees the keys up to its own
  int64_t window;    // so many of them at most
  float scale;
  const float* sinks;  // one for each head, or null
  float* out;          // [tokens][heads][value_dim]
};

Status kv_attend(const KvPages& pages, const Attend& attend, int limit);

}  // namespace kvant
