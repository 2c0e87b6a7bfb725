#include "kv/cache.h"

#include <algorithm>
#include <functional>
#include <new>

#include "isa/select.h"
#include "runtime/carver.h"

namespace kvant {
namespace {

void drop_all(PagePool& pool, std::vector<Page*>& pages) {
  for (Page* page : pages) pool.drop(page);
  pages.clear();
}

void drop_front(PagePool& pool, std::vector<Page*>& pages, int64_t count) {
  count = std::min(count, int64_t(pages.size()));
  for (int64_t i = 0; i < count; ++i) pool.drop(pages[size_t(i)]);
  pages.erase(pages.begin(), pages.begin() + count);
}

}  // namespace

KvSequence::KvSequence(std::shared_ptr<KvCache> cache) : cache_(std::move(cache)) {
  int64_t heads = 0;
  for (const KvLayer& layer : cache_->layers()) {
    first_.push_back(heads);
    heads += layer.heads;
  }
  pages_.resize(size_t(heads));
}

KvSequence::~KvSequence() {
  for (HeadPages& own : pages_) {
    drop_all(cache_->pool(), own.body);
    drop_all(cache_->pool(), own.exact);
    drop_all(cache_->pool(), own.sinks);
  }
}

KvSequence::Locks::Locks(std::span<const KvPart> parts) {
  std::vector<KvSequence*> all;
  all.reserve(parts.size());
  locks_.reserve(parts.size());
  for (const KvPart& part : parts) all.push_back(part.sequence);
  std::sort(all.begin(), all.end(), std::less<>());
  all.erase(std::unique(all.begin(), all.end()), all.end());
  for (const KvSequence* sequence : all) locks_.emplace_back(sequence->mutex_);
}

int64_t KvSequence::length(int layer) const {
  const std::lock_guard lock(mutex_);
  int64_t least = pages(layer, 0).end();
  for (int head = 1; head < cache_->layers()[size_t(layer)].heads; ++head) least = std::min(least, pages(layer, head).end());
  return least;
}

int64_t KvSequence::held(int layer, int head) const {
  const std::lock_guard lock(mutex_);
  return pages(layer, head).length;
}

int64_t KvSequence::length() const {
  const std::lock_guard lock(mutex_);
  int64_t least = pages_[0].end();
  for (const HeadPages& own : pages_) least = std::min(least, own.end());
  return least;
}

// What no token from the place `length` on sees, even after a rollback.
void KvSequence::let_go(const KvLayer& layer, HeadPages& own, int64_t length) {
  PagePool& pool = cache_->pool();
  // Attention merges chunks: a page counts from its own place, so any may go.
  const int64_t first = layer.first_seen(std::max(length - kRollback, int64_t(0))) / kPageTokens;
  if (first > own.first) {
    drop_front(pool, own.body, first - own.first);
    own.first = first;
  }
  if (layer.near()) {
    // A group that is not full lies in one page with its last token.
    const int64_t first = std::max(length - layer.tail - kRollback, int64_t(0)) / kPageTokens;
    if (first > own.first_exact) {
      drop_front(pool, own.exact, first - own.first_exact);
      own.first_exact = first;
    }
  }
}

Status KvSequence::fork(std::unique_ptr<KvSequence>& out) const {
  const std::lock_guard lock(mutex_);
  try {
    auto copy = std::make_unique<KvSequence>(cache_);
    std::vector<HeadPages> pages = pages_;
    // From here on nothing fails: every page the copy names is held.
    copy->pages_.swap(pages);
    for (const HeadPages& own : copy->pages_) {
      for (const auto* pages : {&own.body, &own.exact, &own.sinks}) {
        for (Page* page : *pages) cache_->pool().hold(page);
      }
    }
    out = std::move(copy);
  } catch (const std::bad_alloc&) {
    return {Code::no_memory, "no memory for a sequence"};
  }
  return {};
}

}  // namespace kvant
