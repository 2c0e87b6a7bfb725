#include <algorithm>
#include <cstring>
#include <new>

#include "kv/cache.h"

namespace kvant {
namespace {

// Before the pages of a head: body, exact, sinks, in this order.
struct StateHead {
  int64_t length, first, body, first_exact, exact, sinks, missing, settled;
};
static_assert(sizeof(StateHead) == 64);

int64_t bytes_of(const KvLayer& layer, const StateHead& head) {
  return int64_t(sizeof head) + head.body * layer.page_bytes() + (head.exact + head.sinks) * layer.exact_bytes();
}

StateHead head_of(const HeadPages& own) {
  return {own.length,           own.first,             int64_t(own.body.size()), own.first_exact, int64_t(own.exact.size()),
          int64_t(own.sinks.size()), own.missing, own.settled};
}

// Whether such pages can be those of a sequence.
bool is_sound(const KvLayer& layer, const StateHead& head) {
  constexpr int64_t kMost = int64_t(1) << 40;
  if (head.length < 0 || head.length > kMost) return false;
  const bool whole = head.missing == 0 && head.settled == 0;
  const bool evicted = head.missing > 0 && head.missing <= kMost && head.settled > 0 && head.settled <= head.length;
  if (!whole && (!evicted || !layer.sees_all() || layer.key_group() > 1)) return false;
  const int64_t end = pages_of(head.length);
  if (head.first < 0 || head.first > end || head.body != end - head.first) return false;
  if (head.first * kPageTokens > layer.first_seen(head.length + 1)) return false;
  if (head.exact < 0 || head.first_exact < 0 || head.first_exact > end) return false;
  if (head.exact != (layer.near() ? end - head.first_exact : 0)) return false;
  // A group that is not full has no codes.
  if (layer.key_group() > 1 && head.first_exact > head.length / kPageTokens) return false;
  const int64_t sinks = layer.quantized() ? std::min(end, pages_of(layer.sink)) : 0;
  return head.sinks == sinks;
}

// Whether no number of the exponent bits `top` is NaN or infinite.
template <class Word>
bool all_finite(const uint8_t* bytes, int64_t count, Word top) {
  bool finite = true;
  for (int64_t i = 0; i < count; i += int64_t(sizeof(Word))) {
    Word word;
    memcpy(&word, bytes + i, sizeof word);
    finite = finite && (word & top) != top;
  }
  return finite;
}

bool is_sound(const KvCodecInfo& codec, int32_t dim, int side, const uint8_t* bytes) {
  const int64_t size = kv_page_bytes(codec, dim, side);
  if (codec.quantized) {
    const int64_t scales = (codec.row_scale ? 1 : kv_blocks(dim)) * kPageTokens * 2;
    const uint8_t* from = bytes + size - scales * (codec.has_min ? 2 : 1);
    if (!all_finite<uint16_t>(from, bytes + size - from, 0x7c00)) return false;
    for (int64_t i = 0; codec.positive() && i < scales; i += 2) {
      uint16_t scale;
      memcpy(&scale, from + i, 2);
      if (scale > 0x8000) return false;
    }
    return true;
  }
  if (codec.bits == 32) return all_finite<uint32_t>(bytes, size, 0x7f800000);
  return all_finite<uint16_t>(bytes, size, codec.ggml_type == 1 ? 0x7c00 : 0x7f80);
}

}  // namespace

int64_t KvSequence::state_bytes(int layer, int head) const {
  const std::lock_guard lock(mutex_);
  return bytes_of(cache_->layers()[size_t(layer)], head_of(pages(layer, head)));
}

Status KvSequence::save(int layer_index, int head, uint8_t* out, int64_t bytes) const {
  const KvLayer& layer = cache_->layers()[size_t(layer_index)];
  const std::lock_guard lock(mutex_);
  const HeadPages& own = pages(layer_index, head);
  const StateHead begin = head_of(own);
  // Tokens may have come since the caller asked how much there is.
  if (bytes != bytes_of(layer, begin)) return {Code::bad_shape, "out is not of the state's size"};
  memcpy(out, &begin, sizeof begin);
  out += sizeof begin;
  const auto copy = [&](const std::vector<Page*>& from, int64_t bytes) {
    for (const Page* page : from) {
      memcpy(out, page->data, size_t(bytes));
      out += bytes;
    }
  };
  copy(own.body, layer.page_bytes());
  copy(own.exact, layer.exact_bytes());
  copy(own.sinks, layer.exact_bytes());
  return {};
}

Status KvSequence::load(int layer_index, int head, const uint8_t* state, int64_t bytes, bool in_place) {
  const KvLayer& layer = cache_->layers()[size_t(layer_index)];
  const std::lock_guard lock(mutex_);
  HeadPages& own = pages(layer_index, head);
  if (own.length != 0) return {Code::bad_shape, "the head has tokens already"};
  StateHead begin;
  if (bytes < int64_t(sizeof begin)) return {Code::bad_shape, "the state is shorter than its head"};
  memcpy(&begin, state, sizeof begin);
  if (!is_sound(layer, begin) || bytes != bytes_of(layer, begin)) {
    return {Code::bad_shape, "the state is not one of such a layer"};
  }
  for (int other = 0; other < layer.heads; ++other) {
    const int64_t length = pages(layer_index, other).end();
    if (length != 0 && length != begin.length + begin.missing) return {Code::bad_shape, "the heads of a layer have as many tokens each"};
  }
  PagePool& pool = cache_->pool();
  HeadPages fresh;
  fresh.length = begin.length;
  fresh.missing = begin.missing;
  fresh.settled = begin.settled;
  fresh.first = begin.first;
  fresh.first_exact = begin.first_exact;
  Status status;
  const KvCodecInfo& half = kKvCodecs.row[int(KvCodec::f16)];
  const auto take = [&](std::vector<Page*>& to, int64_t count, int64_t size, bool coded) {
    for (int64_t i = 0; i < count && status.ok(); ++i, state += size) {
      const int64_t at[] = {0, coded ? layer.side_bytes(0) : layer.exact_offset()};
      bool sound = true;
      for (int side = 0; side < layer.sides(); ++side) {
        sound = sound && is_sound(coded ? layer.info(side) : half, layer.size(side), side, state + at[side]);
      }
      if (!sound) {
        status = {Code::bad_shape, "the state holds numbers that are not finite"};
        return;
      }
      Page* page = nullptr;
      if (in_place) {
        page = pool.attach(state);
      } else if (const auto want = pool.take(coded ? layer.layout() : layer.exact_layout(), page); want == PagePool::Want::page) {
        memcpy(page->data, state, size_t(size));
      } else if (want == PagePool::Want::over_budget) {
        status = {Code::full, "the cache is full: its budget has no page left"};
      }
      if (status.ok() && !page) status = {Code::no_memory, "no memory for a page"};
      if (page) to.push_back(page);
    }
  };
  state += sizeof begin;
  try {
    fresh.body.reserve(size_t(begin.body));
    fresh.exact.reserve(size_t(begin.exact));
    fresh.sinks.reserve(size_t(begin.sinks));
    take(fresh.body, begin.body, layer.page_bytes(), true);
    take(fresh.exact, begin.exact, layer.exact_bytes(), false);
    take(fresh.sinks, begin.sinks, layer.exact_bytes(), false);
  } catch (const std::bad_alloc&) {
    status = {Code::no_memory, "no memory for the pages of a sequence"};
  }
  if (!status.ok()) {
    for (auto* list : {&fresh.body, &fresh.exact, &fresh.sinks}) {
      for (Page* page : *list) pool.drop(page);
    }
    return status;
  }
  own = std::move(fresh);
  return {};
}

}  // namespace kvant
