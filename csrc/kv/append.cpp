#include <algorithm>
#include <atomic>
#include <cstring>
#include <deque>
#include <new>

#include "isa/select.h"
#include "kv/cache.h"
#include "kv/rows.h"
#include "runtime/pool.h"

namespace kvant {
namespace {

// Fewer tokens than these go together for all heads: the transform takes sixteen rows at a time.
constexpr int64_t kFewTokens = 16, kMostRows = 256;
// Numbers that are appended before another thread has woken up.
constexpr int64_t kSmallAppend = 32 * 1024;

constexpr Status kNoRows = {Code::bad_format, "keys that are coded by channel are no rows of a file"};

}  // namespace

// The pages that an append needs, taken before anything is written: new ones, and copies of shared ones. Nothing of
// the sequence changes until commit().
class KvSequence::Growth {
 public:
  Growth(KvSequence& sequence, const KvLayer& layer, int layer_index, int64_t tokens)
      : sequence_(sequence), pool_(sequence.cache_->pool()), layer_(layer), tokens_(tokens) {
    for (int head = 0; head < layer.heads; ++head) heads_.push_back({&sequence.pages(layer_index, head), {}, {}, {}});
  }
  Growth(const Growth&) = delete;
  ~Growth() {
    for (Head& head : heads_) {
      for (Run* run : {&head.body, &head.exact, &head.sinks}) {
        for (Page* page : run->taken) pool_.drop(page);
      }
    }
  }

  Status take() {
    for (Head& head : heads_) {
      const HeadPages& own = *head.pages;
      if (const Status s = take(head.body, own.body, own.first, own.length, layer_.layout(), kEvery); !s.ok()) return s;
      if (!layer_.quantized()) continue;
      if (layer_.near()) {
        const Status s = take(head.exact, own.exact, own.first_exact, own.length, layer_.exact_layout(), kEvery);
        if (!s.ok()) return s;
      }
      if (own.length < layer_.sink) {
        const Status s = take(head.sinks, own.sinks, 0, own.length, layer_.exact_layout(), pages_of(layer_.sink));
        if (!s.ok()) return s;
      }
    }
    return {};
  }

  int64_t tokens() const { return tokens_; }
  int64_t start(int head) const { return heads_[size_t(head)].pages->length; }
  // The page numbered so, or null where there is none of the kind.
  uint8_t* body(int head, int64_t page) const { return heads_[size_t(head)].body.at(page); }
  uint8_t* exact(int head, int64_t page) const { return heads_[size_t(head)].exact.at(page); }
  uint8_t* sinks(int head, int64_t page) const { return heads_[size_t(head)].sinks.at(page); }

  void commit() {
    for (Head& head : heads_) {
      commit(head.body, head.pages->body, head.pages->first);
      commit(head.exact, head.pages->exact, head.pages->first_exact);
      commit(head.sinks, head.pages->sinks, 0);
      head.pages->length += tokens_;
      sequence_.let_go(layer_, *head.pages, head.pages->length - tokens_);
    }
  }

 private:
  static constexpr int64_t kEvery = int64_t(1) << 50;

  // Pages from `first` on that are written; the first may be there already, alone.
  struct Run {
    int64_t first = 0;
    Page* there = nullptr;
    std::vector<Page*> taken;
    uint8_t* at(int64_t page) const {
      int64_t i = page - first;
      if (there && i == 0) return there->data;
      i -= there ? 1 : 0;
      return i >= 0 && i < int64_t(taken.size()) ? taken[size_t(i)]->data : nullptr;
    }
  };
  struct Head {
    HeadPages* pages;
    Run body, exact, sinks;
  };

  Status take(Run& run, const std::vector<Page*>& have, int64_t first, int64_t length, const PageLayout& layout,
              int64_t most) {
    const int64_t end = std::min(pages_of(length + tokens_), most), behind = first + int64_t(have.size());
    run.first = behind;
    // Nothing throws once a page was taken.
    run.taken.reserve(size_t(std::max(end - behind, int64_t(0)) + 1));
    const_cast<std::vector<Page*>&>(have).reserve(have.size() + run.taken.capacity());
    if (length % kPageTokens && length / kPageTokens == behind - 1 && !have.empty()) {
      run.first = behind - 1;
      Page* last = have.back();
      if (last->size && last->references.load(std::memory_order_acquire) == 1) {
        run.there = last;
      } else {
        Page* copy;
        if (const Status s = page(layout, copy); !s.ok()) return s;
        run.taken.push_back(copy);
        memcpy(copy->data, last->data, size_t(layout[0]));
      }
    }
    for (int64_t i = behind; i < end; ++i) {
      Page* fresh;
      if (const Status s = page(layout, fresh); !s.ok()) return s;
      run.taken.push_back(fresh);
    }
    return {};
  }

  Status page(const PageLayout& layout, Page*& out) {
    switch (pool_.take(layout, out)) {
      case PagePool::Want::page: return {};
      case PagePool::Want::over_budget: return {Code::full, "the cache is full: its budget has no page left"};
      default: return {Code::no_memory, "no memory for a page"};
    }
  }

  void commit(Run& run, std::vector<Page*>& pages, int64_t first) {
    int64_t at = run.first - first + (run.there ? 1 : 0);
    for (Page* page : run.taken) {
      if (at < int64_t(pages.size())) {
        pool_.drop(pages[size_t(at)]);
        pages[size_t(at)] = page;
      } else {
        pages.push_back(page);
      }
      ++at;
    }
    run.taken.clear();
  }

  KvSequence& sequence_;
  PagePool& pool_;
  const KvLayer& layer_;
  const int64_t tokens_;
  std::vector<Head> heads_;
};

// fill(coder, side, first head, end of heads, first token, end of tokens) codes rows and returns the first that cannot
// be stored, or -1. Tokens are counted through all parts.
template <class Fill>
Status KvSequence::grow(std::span<const KvPart> parts, int layer_index, int limit, int64_t* which, int64_t* bad,
                        Fill&& fill) {
  const Kernels* kernels;
  if (const Status s = current_kernels(kernels); !s.ok()) return s;
  if (parts.empty()) return {};
  const KvLayer& layer = parts[0].sequence->cache_->layers()[size_t(layer_index)];
  const Locks locks(parts);
  const auto refuse_part = [&](size_t i, Status status) {
    if (which) *which = int64_t(i);
    return status;
  };
  for (size_t i = 0; locks.count() < parts.size(); ++i) {
    const auto same = [&](const KvPart& other) { return other.sequence == parts[i].sequence; };
    if (std::any_of(parts.begin(), parts.begin() + int64_t(i), same)) {
      return refuse_part(i, {Code::bad_shape, "a sequence comes twice"});
    }
  }
  std::deque<Growth> growths;
  std::vector<int64_t> first_token, first_task;
  int64_t tokens = 0, tasks = 0;
  const auto heads_of_task = [](int64_t count) { return int(std::max<int64_t>(kMostRows / count, 1)); };
  for (size_t i = 0; i < parts.size(); ++i) {
    const int64_t count = parts[i].tokens;
    if (count == 0) continue;
    Growth& growth = growths.emplace_back(*parts[i].sequence, layer, layer_index, count);
    if (const Status s = growth.take(); !s.ok()) return refuse_part(i, s);
    first_token.push_back(tokens);
    first_task.push_back(tasks);
    tokens += count;
    // Tasks own whole pages: tokens share bytes of planes of few bits.
    tasks += count < kFewTokens ? (layer.heads + heads_of_task(count) - 1) / heads_of_task(count)
                                : layer.heads * (pages_of(count) + 1);
  }
  std::atomic<int64_t> first_bad{INT64_MAX};
  std::atomic<bool> no_memory{false};
  const auto refuse = [&](int64_t token, int head) {
    const int64_t place = token * layer.heads + head;
    for (int64_t old = first_bad.load(); place < old && !first_bad.compare_exchange_weak(old, place);) {
    }
  };
  // Heads begin .. end - 1, tokens from .. until - 1 of a part that begins with token `base`.
  const auto some = [&](const Growth& growth, int64_t base, int begin, int end, int64_t from, int64_t until) {
    const int64_t each = until - from, rows = each * (end - begin);
    for (int side = 0; side < layer.sides(); ++side) {
      KvCoder coder(*kernels, layer, side);
      Carver needed;
      coder.place(needed, rows);
      void* memory = thread_scratch(needed.bytes());
      if (!memory) return no_memory.store(true);
      Carver carver(memory);
      coder.place(carver, rows);
      if (const int64_t row = fill(coder, side, begin, end, base + from, base + until); row >= 0) {
        refuse(base + from + row % each, begin + int(row / each));
        continue;
      }
      for (int head = begin; head < end; ++head) {
        for (int64_t token = from; token < until;) {
          const int64_t at = growth.start(head) + token, page = at / kPageTokens;
          const int64_t count = std::min(until - token, (page + 1) * kPageTokens - at);
          const int64_t first = (head - begin) * each + token - from;
          const auto put = [&](int64_t r, int64_t n) {
            const int place = int((at + r - first) % kPageTokens);
            uint8_t *exact = growth.exact(head, page), *sink = growth.sinks(head, page);
            const int64_t exact_offset = side ? layer.exact_offset() : 0;
            bool fits = coder.put(r, n, growth.body(head, page) + (side ? layer.side_bytes(0) : 0), place);
            if (exact) fits = coder.put_exact(r, n, exact + exact_offset, place) && fits;
            const int64_t sinks = std::min(layer.sink - (at + r - first), n);
            if (sink && sinks > 0) fits = coder.put_exact(r, sinks, sink + exact_offset, place) && fits;
            return fits;
          };
          if (put(first, count)) {
            const int begin = int(at % kPageTokens);
            coder.put_groups(growth.exact(head, page), growth.body(head, page), begin, begin + int(count));
          } else {
            int64_t row = first;
            while (put(row, 1)) ++row;
            refuse(base + token + row - first, head);
          }
          token += count;
        }
      }
    }
  };
  if (tokens * layer.heads * int64_t(layer.dim + layer.value_dim) <= kSmallAppend) limit = 1;
  parallel_for(tasks, limit, [&](int64_t task) {
    const size_t part = size_t(std::upper_bound(first_task.begin(), first_task.end(), task) - first_task.begin()) - 1;
    const Growth& growth = growths[part];
    const int64_t count = growth.tokens(), base = first_token[part], i = task - first_task[part];
    if (count < kFewTokens) {
      const int most = heads_of_task(count);
      return some(growth, base, int(i) * most, std::min(int(i + 1) * most, int(layer.heads)), 0, count);
    }
    const int64_t pieces = pages_of(count) + 1;
    const int head = int(i / pieces);
    const int64_t start = growth.start(head), page = start / kPageTokens + i % pieces;
    const int64_t from = std::max(page * kPageTokens, start) - start;
    const int64_t until = std::min((page + 1) * kPageTokens, start + count) - start;
    if (from < until) some(growth, base, head, head + 1, from, until);
  });
  if (no_memory.load()) return {Code::no_memory, "no memory for scratch"};
  if (first_bad.load() != INT64_MAX) {
    if (bad) *bad = first_bad.load();
    return {Code::bad_shape, "a number is not finite, or too large for the codec"};
  }
  for (Growth& growth : growths) growth.commit();
  return {};
}

Status KvSequence::append(std::span<const KvPart> parts, int layer, const KvInput& k, const KvInput& v, int limit,
                          int64_t* which, int64_t* bad) {
  try {
    return grow(parts, layer, limit, which, bad, [&](KvCoder& coder, int side, int begin, int end, int64_t from, int64_t until) {
      const int64_t each = until - from, rows = each * (end - begin);
      // The first token is named, and of its heads the first.
      int64_t first = until, row = -1;
      for (int head = begin; head < end; ++head) {
        const int64_t refused = coder.gather(side ? v : k, head, from, until, (head - begin) * each);
        if (refused < 0 || refused >= first) continue;
        first = refused;
        row = (head - begin) * each + refused - from;
      }
      return row >= 0 ? row : coder.encode(rows, each);
    });
  } catch (const std::bad_alloc&) {
    return {Code::no_memory, "no memory for the pages of a sequence"};
  }
}

Status KvSequence::write(int layer, int64_t tokens, const uint8_t* k, const uint8_t* v) {
  const KvLayer& own = cache_->layers()[size_t(layer)];
  if (own.key_group() > 1) return kNoRows;
  const int64_t bytes[2] = {kv_row_bytes(own.info(0), own.dim), kv_row_bytes(own.info(1), own.value_dim)};
  const KvPart all[] = {{this, tokens}};
  try {
    return grow(all, layer, 0, nullptr, nullptr, [&](KvCoder& coder, int side, int begin, int end, int64_t from, int64_t until) {
      const int64_t each = until - from;
      for (int64_t r = 0; r < each * (end - begin); ++r) {
        const int64_t place = (from + r % each) * own.heads + begin + r / each;
        coder.read((side ? v : k) + place * bytes[side], r);
      }
      const int64_t row = coder.first_refused(each * (end - begin), each);
      if (row < 0) coder.decode(each * (end - begin));
      return row;
    });
  } catch (const std::bad_alloc&) {
    return {Code::no_memory, "no memory for the pages of a sequence"};
  }
}

// As rows of a file, or as floats with all transforms taken back.
Status KvSequence::read(int layer_index, int side, int head, int64_t first, int64_t tokens, uint8_t* bytes,
                        float* floats) const {
  const Kernels* kernels;
  if (const Status s = current_kernels(kernels); !s.ok()) return s;
  const KvLayer& layer = cache_->layers()[size_t(layer_index)];
  const int64_t group = side ? 1 : layer.key_group();
  if (bytes && group > 1) return kNoRows;
  const std::lock_guard lock(mutex_);
  const HeadPages& own = pages(layer_index, head);
  if (first < own.first * kPageTokens || tokens < 0 || first > own.length - tokens) {
    return {Code::bad_shape, "there are not such tokens, or a window has let go of them"};
  }
  if (side >= layer.sides() && bytes) return {Code::bad_shape, "values are a view of keys: no rows of their own"};
  // Of a view what keys begin with.
  const int stored = side < layer.sides() ? side : 0;
  KvCoder coder(*kernels, layer, stored);
  Carver needed;
  coder.place(needed, kPageTokens);
  void* memory = thread_scratch(needed.bytes());
  if (!memory) return {Code::no_memory, "no memory for scratch"};
  Carver carver(memory);
  coder.place(carver, kPageTokens);
  const int64_t row_bytes = kv_row_bytes(layer.info(side), layer.size(side));
  for (int64_t token = first; token < first + tokens;) {
    const int64_t page = token / kPageTokens, count = std::min((page + 1) * kPageTokens, first + tokens) - token;
    const uint8_t* from = own.body[size_t(page - own.first)]->data + (stored ? layer.side_bytes(0) : 0);
    coder.take(from, int(token % kPageTokens), count);
    if (bytes) {
      coder.write(count, bytes);
      bytes += count * row_bytes;
    } else {
      coder.decode(count);
      // Of a group that is not full there are no codes.
      if (const int64_t open = std::max(own.length - own.length % group, token); open < token + count) {
        const uint8_t* exact = own.exact[size_t(page - own.first_exact)]->data;
        coder.take_exact(exact, int(open % kPageTokens), token + count - open, open - token);
      }
      coder.untransform(head, count);
      for (int64_t r = 0; r < count; ++r, floats += layer.size(side)) {
        memcpy(floats, coder.floats() + r * coder.width(), size_t(layer.size(side)) * 4);
      }
    }
    token += count;
  }
  return {};
}

}  // namespace kvant
