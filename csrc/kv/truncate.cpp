// Taking tokens back. Keys that are coded by channel leave a group that is open again: it lives on in a page of halves,
// which is made of the codes where what was exact has been let go of.
#include <algorithm>
#include <new>

#include "isa/select.h"
#include "kv/cache.h"
#include "kv/rows.h"

namespace kvant {
namespace {

constexpr float kMostHalf = 65504.0f;

void drop_back(PagePool& pool, std::vector<Page*>& pages, int64_t kept) {
  kept = std::max(kept, int64_t(0));
  while (int64_t(pages.size()) > kept) {
    pool.drop(pages.back());
    pages.pop_back();
  }
}

}  // namespace

// The pages of halves that a cut must make, taken before anything changes: of each head its last one, which the cut lets
// go of anyway, or where that is shared a new one.
class KvSequence::Copies {
 public:
  explicit Copies(KvSequence& sequence) : sequence_(sequence) {}
  ~Copies() {
    for (Page* page : taken_) sequence_.cache_->pool().drop(page);
  }

  Status take(int64_t length) {
    const auto& layers = sequence_.cache_->layers();
    pages_.assign(sequence_.pages_.size(), nullptr);
    taken_.reserve(pages_.size());
    int64_t bytes = 0;
    for (size_t l = 0; l < layers.size(); ++l) {
      if (layers[l].key_group() == 1 || length % kPageTokens == 0) continue;
      for (int head = 0; head < layers[l].heads; ++head) {
        HeadPages& own = sequence_.pages(int(l), head);
        if (length / kPageTokens >= own.first_exact) continue;
        if (const Status s = current_kernels(kernels_); !s.ok()) return s;
        bytes = std::max(bytes, scratch_bytes(layers[l]));
        // Nothing throws from here on.
        own.exact.reserve(1);
        Page*& page = pages_[size_t(sequence_.first_[l] + head)];
        if (!own.exact.empty() && own.exact.back()->size && own.exact.back()->references.load(std::memory_order_acquire) == 1) {
          page = own.exact.back();
          continue;
        }
        switch (sequence_.cache_->pool().take(layers[l].exact_layout(), page)) {
          case PagePool::Want::page: taken_.push_back(page); break;
          case PagePool::Want::over_budget: return {Code::full, "the cache is full: its budget has no page left"};
          default: return {Code::no_memory, "no memory for a page"};
        }
      }
    }
    if (bytes == 0) return {};
    memory_ = thread_scratch(size_t(bytes));
    return memory_ ? Status{} : Status{Code::no_memory, "no memory for scratch"};
  }

  // The page for a head, with the tokens of its last page up to `length`; or null.
  Page* make(int layer_index, int head, int64_t length) {
    Page* page = pages_[size_t(sequence_.first_[size_t(layer_index)] + head)];
    if (!page) return nullptr;
    const KvLayer& layer = sequence_.cache_->layers()[size_t(layer_index)];
    const HeadPages& own = sequence_.pages(layer_index, head);
    const uint8_t* body = own.body[size_t(length / kPageTokens - own.first)]->data;
    const int64_t count = length % kPageTokens;
    for (int side = 0; side < 2; ++side) {
      KvCoder coder(*kernels_, layer, side);
      Carver carver(memory_);
      coder.place(carver, kPageTokens);
      coder.take(body + (side ? layer.side_bytes(0) : 0), 0, count);
      coder.decode(count);
      float* x = coder.floats();
      for (int64_t i = 0; i < count * coder.width(); ++i) x[i] = std::clamp(x[i], -kMostHalf, kMostHalf);
      // First tokens are there as they were.
      const int64_t exact = std::min(length, layer.sink) - (length - count);
      const int64_t offset = side ? layer.exact_offset() : 0;
      if (exact > 0) coder.take_exact(own.sinks[size_t(length / kPageTokens)]->data + offset, 0, exact, 0);
      (void)coder.put_exact(0, count, page->data + offset, 0);
    }
    return page;
  }

  void keep() { taken_.clear(); }

 private:
  int64_t scratch_bytes(const KvLayer& layer) const {
    int64_t most = 0;
    for (int side = 0; side < 2; ++side) {
      KvCoder coder(*kernels_, layer, side);
      Carver needed;
      coder.place(needed, kPageTokens);
      most = std::max(most, int64_t(needed.bytes()));
    }
    return most;
  }

  KvSequence& sequence_;
  const Kernels* kernels_ = nullptr;
  void* memory_ = nullptr;
  std::vector<Page*> pages_;  // of all heads
  std::vector<Page*> taken_;
};

void KvSequence::cut(const KvLayer& layer, HeadPages& own, int64_t length, Page* copies) {
  PagePool& pool = cache_->pool();
  if (length == 0) {
    for (auto* list : {&own.body, &own.exact, &own.sinks}) drop_back(pool, *list, 0);
    own = {};
    return;
  }
  drop_back(pool, own.body, pages_of(length) - own.first);
  if (copies) {
    if (!own.exact.empty() && own.exact.back() == copies) own.exact.pop_back();
    drop_back(pool, own.exact, 0);
    own.exact.push_back(copies);
    own.first_exact = length / kPageTokens;
  } else if (layer.near()) {
    drop_back(pool, own.exact, pages_of(length) - own.first_exact);
    // What was exact and is no more stays so: later tokens begin anew behind it.
    if (own.exact.empty()) own.first_exact = pages_of(length);
  }
  drop_back(pool, own.sinks, std::min(pages_of(length), pages_of(layer.sink)));
  own.length = length;
}

Status KvSequence::truncate(int64_t length) {
  const std::lock_guard lock(mutex_);
  const auto& layers = cache_->layers();
  for (size_t l = 0; l < layers.size(); ++l) {
    // The next token must find all it sees.
    const int64_t seen = layers[l].first_seen(length + 1);
    for (int head = 0; head < layers[l].heads; ++head) {
      const HeadPages& own = pages(int(l), head);
      if (length < 0 || length > own.end()) return {Code::bad_shape, "there are not so many tokens"};
      if (length > 0 && !own.has(length)) return {Code::bad_shape, "tokens before it were evicted"};
      if (length > 0 && seen < own.first * kPageTokens) {
        return {Code::bad_shape, "a window has let go of tokens that would be seen again"};
      }
    }
  }
  try {
    Copies copies(*this);
    if (const Status s = copies.take(length); !s.ok()) return s;
    for (size_t l = 0; l < layers.size(); ++l) {
      for (int head = 0; head < layers[l].heads; ++head) {
        HeadPages& own = pages(int(l), head);
        cut(layers[l], own, length > 0 ? length - own.missing : 0, copies.make(int(l), head, length));
      }
    }
    copies.keep();
  } catch (const std::bad_alloc&) {
    return {Code::no_memory, "no memory for the pages of a sequence"};
  }
  return {};
}

}  // namespace kvant
