#include <algorithm>
#include <cmath>
#include <memory>
#include <new>

#include "capi/checks.h"
#include "kv/cache.h"
#include "ops/ops.h"

using namespace kvant;

struct kvant_cache {
  std::shared_ptr<KvCache> cache;
};
struct kvant_sequence {
  std::unique_ptr<KvSequence> sequence;
};

namespace {

constexpr int32_t kMostHeads = 1 << 16, kMostLayers = 1 << 16;

Status check_side(const kvant_kv_side& side, bool keys) {
  if (side.codec < 0 || side.codec >= kKvCodecCount) return {Code::bad_format, "no such codec"};
  if (side.scale < 0 || side.scale > KVANT_SCALE_LEAST) return {Code::bad_format, "no such rule for scales"};
  if (side.dim < 1 || side.dim > kMostKvDim) return {Code::bad_shape, "keys and values must have 1 to 1024 elements"};
  if (side.rotate != 0) {
    const bool power = (side.rotate & (side.rotate - 1)) == 0;
    if (!power || side.rotate < kLeastHadamard || side.rotate > kMostHadamard || side.dim % side.rotate) {
      return {Code::bad_shape, "rotate must be a power of two from 16 to 512 that divides the elements"};
    }
  }
  if (!keys && (side.center || side.equalize)) return {Code::bad_shape, "values are neither centered nor equalized"};
  return {};
}

Status check_layer(const kvant_kv_layer& layer) {
  if (layer.heads < 1 || layer.heads > kMostHeads) return {Code::bad_shape, "a layer must have 1 to 65536 heads"};
  if (const Status s = check_side(layer.k, true); !s.ok()) return s;
  if (!layer.view) {
    if (const Status s = check_side(layer.v, false); !s.ok()) return s;
  } else if (layer.v.dim < 1 || layer.v.dim > layer.k.dim) {
    return {Code::bad_shape, "values that are a view of keys have 1 to as many elements as these"};
  } else if (kKvCodecs.row[layer.k.codec].key_group > 1) {
    return {Code::bad_format, "keys that are coded by channel hold no values"};
  } else if (layer.k.center || layer.k.equalize || (layer.k.rotate && layer.v.dim % layer.k.rotate)) {
    return {Code::bad_shape, "keys that hold values are neither centered nor equalized, and are rotated in blocks of both"};
  }
  if (layer.window < 0 || layer.chunk < 0 || layer.sink < 0 || layer.tail < 0) {
    return {Code::bad_shape, "window, chunk, sink and tail are not negative"};
  }
  if (layer.sink > kMostElements || layer.tail > kMostElements) return {Code::bad_shape, "sink or tail is too large"};
  const int64_t count = int64_t(layer.heads) * layer.k.dim;
  for (int64_t i = 0; layer.k.center && i < count; ++i) {
    if (!std::isfinite(layer.k.center[i])) return {Code::bad_shape, "center must be finite"};
  }
  for (int64_t i = 0; layer.k.equalize && i < count; ++i) {
    const float factor = layer.k.equalize[i];
    if (!std::isfinite(factor) || !std::isnormal(factor) || factor < 0 || !std::isnormal(1.0f / factor)) {
      return {Code::bad_shape, "equalize must be normal numbers above 0"};
    }
  }
  return {};
}

KvTransform transform_of(const kvant_kv_side& side, int32_t heads) {
  const size_t count = size_t(heads) * size_t(side.dim);
  KvTransform t;
  t.rotate = side.rotate;
  if (side.rotate && side.signs) t.signs.assign(side.signs, side.signs + side.rotate);
  if (side.center) t.center.assign(side.center, side.center + count);
  if (side.equalize) {
    t.equalize.assign(side.equalize, side.equalize + count);
    for (const float factor : t.equalize) t.shrink.push_back(1.0f / factor);
  }
  return t;
}

KvLayer layer_of(const kvant_kv_layer& layer) {
  KvLayer own = {};
  own.heads = layer.heads;
  own.dim = layer.k.dim;
  own.value_dim = layer.v.dim;
  own.fine = layer.fine;
  own.view = layer.view;
  const kvant_kv_side* sides[] = {&layer.k, layer.view ? &layer.k : &layer.v};
  for (int side = 0; side < 2; ++side) {
    own.codec[side] = KvCodec(sides[side]->codec);
    own.rule[side] = KvRule(sides[side]->scale);
    own.transform[side] = transform_of(*sides[side], layer.heads);
  }
  own.window = layer.window > 0 ? std::min(layer.window, kNoWindow) : kNoWindow;
  own.chunk = layer.chunk > 0 ? std::min(layer.chunk, kNoWindow) : kNoWindow;
  own.sink = layer.sink;
  own.tail = layer.tail;
  return own;
}

Status check_place(const KvCache& cache, int32_t layer) {
  if (layer < 0 || layer >= int32_t(cache.layers().size())) return {Code::bad_shape, "no such layer"};
  return {};
}

// Values are there, or not where they are a view.
Status check_values(const KvCache& cache, int32_t layer, int64_t tokens, const void* v) {
  if (!cache.layers()[size_t(layer)].view) {
    return v || !tokens ? Status{} : Status{Code::bad_shape, "the layer has values of its own"};
  }
  return v ? Status{Code::bad_shape, "the layer's values are a view of its keys"} : Status{};
}

// The parts of a call for several sequences.
Status check_parts(const kvant_cache* cache, const kvant_sequence* const* sequences, const int64_t* tokens, int64_t count,
                   int64_t all, int64_t* which, std::vector<KvPart>& parts) {
  if (count < 0 || all < 0) return {Code::bad_shape, "fewer sequences or tokens than none"};
  parts.reserve(size_t(count));
  for (int64_t i = 0; i < count; ++i) {
    if (which) *which = i;
    if (sequences[i]->sequence->cache() != cache->cache) return {Code::bad_shape, "a sequence of another cache"};
    if (tokens[i] < 0 || tokens[i] > all) return {Code::bad_shape, "more tokens than there are, or fewer than none"};
    parts.push_back({sequences[i]->sequence.get(), tokens[i]});
    all -= tokens[i];
  }
  if (which) *which = -1;
  return all == 0 ? Status{} : Status{Code::bad_shape, "tokens of no sequence"};
}

Status check_rows(const KvCache& cache, int32_t layer, int64_t tokens, const void* k, int32_t k_type, const void* v,
                  int32_t v_type) {
  if (const Status s = check_place(cache, layer); !s.ok()) return s;
  if (tokens < 0 || tokens > kMostElements / kMostKvDim / kMostHeads) return {Code::bad_shape, "too many tokens, or fewer than none"};
  for (const int32_t type : {k_type, v_type}) {
    if (type < KVANT_F32 || type > KVANT_BF16) return {Code::bad_format, "no such element type"};
  }
  if (const Status s = check_aligned(k, k_type); !s.ok()) return s;
  if (const Status s = check_aligned(v, v_type); !s.ok()) return s;
  return check_values(cache, layer, tokens, v);
}

Status check_query(const KvCache& cache, int32_t layer, const kvant_attention_query& query) {
  if (const Status s = check_place(cache, layer); !s.ok()) return s;
  const int32_t key_heads = cache.layers()[size_t(layer)].heads;
  if (query.heads < 1 || query.heads % key_heads) return {Code::bad_shape, "heads of q are not a multiple of those of keys"};
  if (query.tokens < 0) return {Code::bad_shape, "fewer tokens than none"};
  if (!(query.softcap >= 0.0f) || !std::isfinite(query.softcap)) return {Code::bad_shape, "softcap must be finite and not negative"};
  for (const float* floats : {query.q, query.sinks, static_cast<const float*>(query.out), static_cast<const float*>(query.lse)}) {
    if (const Status s = check_aligned(floats, KVANT_F32); !s.ok()) return s;
  }
  return {};
}

KvQuery query_of(const kvant_attention_query& query) {
  return {query.q,       query.token_stride, query.head_stride, query.tokens, query.heads,
          query.scale,   query.softcap,      query.causal,      query.exact,  query.sinks,
          query.out,     query.lse};
}

Status check_read(const KvSequence& sequence, int32_t layer, int32_t side, int32_t head, int64_t first, int64_t tokens) {
  if (const Status s = check_place(*sequence.cache(), layer); !s.ok()) return s;
  if (side < 0 || side > 1) return {Code::bad_shape, "side must be 0 for keys or 1 for values"};
  if (head < 0 || head >= sequence.cache()->layers()[size_t(layer)].heads) return {Code::bad_shape, "no such head"};
  if (first < 0 || tokens < 0) return {Code::bad_shape, "there are not such tokens"};
  return {};
}

}  // namespace

extern "C" {

KVANT_EXPORT int32_t kvant_kv_codec_count(void) { return kKvCodecCount; }

KVANT_EXPORT const char* kvant_kv_codec_name(int32_t codec) {
  return codec >= 0 && codec < kKvCodecCount ? kKvCodecs.row[codec].name : nullptr;
}

KVANT_EXPORT int64_t kvant_kv_row_bytes(int32_t codec, int32_t dim) {
  if (codec < 0 || codec >= kKvCodecCount || dim < 1 || dim > kMostKvDim) return 0;
  return kv_row_bytes(kKvCodecs.row[codec], dim);
}

KVANT_EXPORT int32_t kvant_cache_new(const kvant_kv_layer* layers, int32_t count, int64_t budget, kvant_cache** cache) {
  if (count < 1 || count > kMostLayers) return fail(Code::bad_shape, "a cache must have 1 to 65536 layers");
  if (budget < 0) return fail(Code::bad_shape, "the budget is negative");
  for (int32_t i = 0; i < count; ++i) KVANT_CHECK(check_layer(layers[i]));
  try {
    std::vector<KvLayer> own;
    for (int32_t i = 0; i < count; ++i) own.push_back(layer_of(layers[i]));
    *cache = new kvant_cache{std::make_shared<KvCache>(std::move(own), budget)};
  } catch (const std::bad_alloc&) {
    return fail(Code::no_memory, "no memory for a cache");
  }
  return KVANT_OK;
}

KVANT_EXPORT void kvant_cache_free(kvant_cache* cache) { delete cache; }

KVANT_EXPORT void kvant_cache_usage(const kvant_cache* cache, kvant_cache_stats* stats) {
  const PagePool& pool = cache->cache->pool();
  *stats = {pool.used(), pool.reserved(), pool.pages()};
}

KVANT_EXPORT int32_t kvant_sequence_new(kvant_cache* cache, kvant_sequence** sequence) {
  try {
    *sequence = new kvant_sequence{std::make_unique<KvSequence>(cache->cache)};
  } catch (const std::bad_alloc&) {
    return fail(Code::no_memory, "no memory for a sequence");
  }
  return KVANT_OK;
}

KVANT_EXPORT void kvant_sequence_free(kvant_sequence* sequence) { delete sequence; }

KVANT_EXPORT int32_t kvant_sequence_fork(const kvant_sequence* sequence, kvant_sequence** fork) {
  std::unique_ptr<KvSequence> copy;
  KVANT_CHECK(sequence->sequence->fork(copy));
  *fork = new (std::nothrow) kvant_sequence{std::move(copy)};
  return *fork ? KVANT_OK : fail(Code::no_memory, "no memory for a sequence");
}

KVANT_EXPORT int64_t kvant_sequence_length(const kvant_sequence* sequence, int32_t layer) {
  if (layer < 0) return sequence->sequence->length();
  return check_place(*sequence->sequence->cache(), layer).ok() ? sequence->sequence->length(layer) : -1;
}

KVANT_EXPORT int64_t kvant_sequence_held(const kvant_sequence* sequence, int32_t layer, int32_t head) {
  return check_read(*sequence->sequence, layer, 0, head, 0, 0).ok() ? sequence->sequence->held(layer, head) : -1;
}

KVANT_EXPORT int32_t kvant_sequence_select(kvant_sequence* sequence, const kvant_selection* heads, int64_t count,
                                           bool evict, int32_t threads) {
  KvSequence& own = *sequence->sequence;
  if (count < 0 || count > kMostHeads * int64_t(kMostLayers)) return fail(Code::bad_shape, "too many heads, or fewer than none");
  try {
    std::vector<KvSelection> all(static_cast<size_t>(count));
    std::vector<KvTurn> turns(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i) {
      const kvant_selection& each = heads[i];
      KVANT_CHECK(check_read(own, each.layer, 0, each.head, 0, each.count));
      KvSelection& one = all[size_t(i)];
      one = {each.layer, each.head, each.held, each.kept, each.count, nullptr, each.turn_begin, each.turn_end};
      if (!each.turn) continue;
      const kvant_turn& t = *each.turn;
      const int32_t dim = own.cache()->layers()[size_t(each.layer)].dim;
      KVANT_CHECK(check_rope({nullptr, 0, 0, &t.by, 1, 1, dim, t.rotary, t.interleaved, t.theta, t.scale,
                              t.freq_factors, nullptr, 0, 0}));
      turns[size_t(i)] = {t.by, t.theta, t.scale, t.freq_factors, t.rotary, t.interleaved};
      one.turn = &turns[size_t(i)];
    }
    return report(own.select(all.data(), count, evict, threads));
  } catch (const std::bad_alloc&) {
    return fail(Code::no_memory, "no memory for a selection");
  }
}

KVANT_EXPORT int32_t kvant_sequence_truncate(kvant_sequence* sequence, int64_t length) {
  return report(sequence->sequence->truncate(length));
}

KVANT_EXPORT int32_t kvant_sequence_append(kvant_sequence* sequence, int32_t layer, int64_t tokens, const void* k,
                                           int32_t k_type, int64_t k_token_stride, int64_t k_head_stride, const void* v,
                                           int32_t v_type, int64_t v_token_stride, int64_t v_head_stride,
                                           int32_t threads, int64_t* bad) {
  if (bad) *bad = -1;
  KVANT_CHECK(check_rows(*sequence->sequence->cache(), layer, tokens, k, k_type, v, v_type));
  const KvPart all[] = {{sequence->sequence.get(), tokens}};
  return report(KvSequence::append(all, layer, {k, Float(k_type), k_token_stride, k_head_stride},
                                   {v, Float(v_type), v_token_stride, v_head_stride}, threads, nullptr, bad));
}

KVANT_EXPORT int32_t kvant_sequence_attend(const kvant_sequence* sequence, int32_t layer,
                                           const kvant_attention_query* query, int32_t threads) {
  KVANT_CHECK(check_query(*sequence->sequence->cache(), layer, *query));
  const KvPart all[] = {{sequence->sequence.get(), query->tokens}};
  return report(KvSequence::attend(all, layer, query_of(*query), threads, nullptr));
}

KVANT_EXPORT int32_t kvant_cache_append(kvant_cache* cache, kvant_sequence* const* sequences, const int64_t* tokens,
                                        int64_t count, int32_t layer, int64_t all, const void* k, int32_t k_type,
                                        int64_t k_token_stride, int64_t k_head_stride, const void* v, int32_t v_type,
                                        int64_t v_token_stride, int64_t v_head_stride, int32_t threads, int64_t* which,
                                        int64_t* bad) {
  if (which) *which = -1;
  if (bad) *bad = -1;
  KVANT_CHECK(check_rows(*cache->cache, layer, all, k, k_type, v, v_type));
  try {
    std::vector<KvPart> parts;
    KVANT_CHECK(check_parts(cache, sequences, tokens, count, all, which, parts));
    return report(KvSequence::append(parts, layer, {k, Float(k_type), k_token_stride, k_head_stride},
                                     {v, Float(v_type), v_token_stride, v_head_stride}, threads, which, bad));
  } catch (const std::exception&) {
    return fail(Code::no_memory, "no memory for so many sequences");
  }
}

KVANT_EXPORT int32_t kvant_cache_attend(const kvant_cache* cache, const kvant_sequence* const* sequences,
                                        const int64_t* tokens, int64_t count, int32_t layer,
                                        const kvant_attention_query* query, int32_t threads, int64_t* which) {
  if (which) *which = -1;
  KVANT_CHECK(check_query(*cache->cache, layer, *query));
  try {
    std::vector<KvPart> parts;
    KVANT_CHECK(check_parts(cache, sequences, tokens, count, query->tokens, which, parts));
    return report(KvSequence::attend(parts, layer, query_of(*query), threads, which));
  } catch (const std::exception&) {
    return fail(Code::no_memory, "no memory for so many sequences");
  }
}

KVANT_EXPORT int32_t kvant_sequence_read(const kvant_sequence* sequence, int32_t layer, int32_t side, int32_t head,
                                         int64_t first, int64_t tokens, uint8_t* out) {
  KVANT_CHECK(check_read(*sequence->sequence, layer, side, head, first, tokens));
  return report(sequence->sequence->read(layer, side, head, first, tokens, out, nullptr));
}

KVANT_EXPORT int32_t kvant_sequence_decode(const kvant_sequence* sequence, int32_t layer, int32_t side, int32_t head,
                                           int64_t first, int64_t tokens, float* out) {
  KVANT_CHECK(check_read(*sequence->sequence, layer, side, head, first, tokens));
  KVANT_CHECK(check_aligned(out, KVANT_F32));
  return report(sequence->sequence->read(layer, side, head, first, tokens, nullptr, out));
}

KVANT_EXPORT int32_t kvant_sequence_write(kvant_sequence* sequence, int32_t layer, int64_t tokens, const uint8_t* k,
                                          const uint8_t* v) {
  KVANT_CHECK(check_place(*sequence->sequence->cache(), layer));
  if (tokens < 0 || tokens > kMostElements / kMostKvDim / kMostHeads) return fail(Code::bad_shape, "too many tokens, or fewer than none");
  KVANT_CHECK(check_values(*sequence->sequence->cache(), layer, tokens, v));
  return report(sequence->sequence->write(layer, tokens, k, v));
}

KVANT_EXPORT int64_t kvant_sequence_state_bytes(const kvant_sequence* sequence, int32_t layer, int32_t head) {
  if (!check_read(*sequence->sequence, layer, 0, head, 0, 0).ok()) return -1;
  return sequence->sequence->state_bytes(layer, head);
}

KVANT_EXPORT int32_t kvant_sequence_save(const kvant_sequence* sequence, int32_t layer, int32_t head, uint8_t* out,
                                         int64_t bytes) {
  KVANT_CHECK(check_read(*sequence->sequence, layer, 0, head, 0, 0));
  return report(sequence->sequence->save(layer, head, out, bytes));
}

KVANT_EXPORT int32_t kvant_sequence_load(kvant_sequence* sequence, int32_t layer, int32_t head, const uint8_t* state,
                                         int64_t bytes, bool in_place) {
  KVANT_CHECK(check_read(*sequence->sequence, layer, 0, head, 0, 0));
  if (in_place) KVANT_CHECK(check_packed(state, bytes));
  return report(sequence->sequence->load(layer, head, state, bytes, in_place));
}

}  // extern "C"
