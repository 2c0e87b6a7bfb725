#include "capi/checks.h"
#include "kv/attend.h"

using namespace kvant;

namespace {

constexpr int32_t kMostDim = 1 << 16;

Status check_pages(const kvant_kv_pages& p) {
  if (p.heads < 1 || p.dim < 1 || p.value_dim < 1 || p.dim > kMostDim || p.value_dim > kMostDim) {
    return {Code::bad_shape, "heads and their sizes must be from 1 to 65536"};
  }
  if (p.pages < 0 || p.pages > kMostElements / kPageTokens / kMostDim / p.heads) return {Code::bad_shape, "too many pages"};
  if (p.type != KVANT_F32 && p.type != KVANT_F16) return {Code::bad_format, "keys and values must be f32 or f16"};
  if (const Status s = check_aligned(p.k, p.type); !s.ok()) return s;
  return check_aligned(p.v, p.type);
}

Status check_span(const kvant_kv_pages& p, int64_t position, int64_t tokens) {
  const int64_t room = p.pages * kPageTokens;
  if (position < 0 || tokens < 0 || position > room || tokens > room - position) {
    return {Code::bad_shape, "tokens run past the pages"};
  }
  return {};
}

KvPages pages_of(const kvant_kv_pages& p) {
  return {static_cast<uint8_t*>(p.k), static_cast<uint8_t*>(p.v), Float(p.type), p.heads, p.dim, p.value_dim, p.pages};
}

}  // namespace

extern "C" {

KVANT_EXPORT int32_t kvant_kv_append(const kvant_kv_pages* pages, int64_t position, int64_t tokens, const float* k,
                                     int64_t k_token_stride, int64_t k_head_stride, const float* v,
                                     int64_t v_token_stride, int64_t v_head_stride, int32_t threads) {
  KVANT_CHECK(check_pages(*pages));
  KVANT_CHECK(check_span(*pages, position, tokens));
  KVANT_CHECK(check_aligned(k, KVANT_F32));
  KVANT_CHECK(check_aligned(v, KVANT_F32));
  return report(kv_append(pages_of(*pages), position, tokens, {k, k_token_stride, k_head_stride},
                          {v, v_token_stride, v_head_stride}, threads));
}

KVANT_EXPORT int32_t kvant_kv_attend(const kvant_kv_pages* pages, int64_t position, int64_t tokens, const float* q,
                                     int64_t q_token_stride, int64_t q_head_stride, int32_t heads, int64_t window,
                                     float scale, const float* sinks, float* out, int32_t threads) {
  KVANT_CHECK(check_pages(*pages));
  KVANT_CHECK(check_span(*pages, position, tokens));
  if (heads < 1 || heads % pages->heads) return fail(Code::bad_shape, "heads of q are not a multiple of those of keys");
  if (window < 1) return fail(Code::bad_shape, "window must be at least 1");
  KVANT_CHECK(check_aligned(q, KVANT_F32));
  KVANT_CHECK(check_aligned(sinks, KVANT_F32));
  KVANT_CHECK(check_aligned(out, KVANT_F32));
  // No window is longer than the pages, and sums with it stay in range.
  const int64_t room = pages->pages * kPageTokens;
  if (window > room) window = room + 1;
  const Attend attend = {{q, q_token_stride, q_head_stride}, tokens, heads, position, window, scale, sinks, out};
  return report(kv_attend(pages_of(*pages), attend, threads));
}

}  // extern "C"
