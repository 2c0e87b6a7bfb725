// What is kept of a sequence's tokens: pages are planned for all heads and taken, then everything is tried, and only
// then rows move. A page that nobody shares is written where it is, so that a full cache can be emptied.
#include <algorithm>
#include <atomic>
#include <new>

#include "isa/select.h"
#include "kv/select_rows.h"
#include "runtime/pool.h"

namespace kvant {

// One call.
class Selecting {
 public:
  Selecting(KvSequence& sequence, const Kernels& kernels, bool evict)
      : sequence_(sequence), kernels_(kernels), pool_(sequence.cache_->pool()), evict_(evict) {}
  ~Selecting() {
    for (KvMove& move : moves_) {
      for (Page* page : move.taken) pool_.drop(page);
    }
  }

  Status run(const KvSelection* heads, int64_t count, int limit) {
    moves_.resize(size_t(count));
    for (int64_t i = 0; i < count; ++i) {
      if (const Status s = plan(heads[i], moves_[size_t(i)]); !s.ok()) return s;
    }
    if (const Status s = check_layers(); !s.ok()) return s;
    for (KvMove& move : moves_) {
      if (const Status s = take(move); !s.ok()) return s;
    }
    return move(limit);
  }

 private:
  HeadPages& pages(const KvSelection& what) { return sequence_.pages(what.layer, what.head); }

  Status plan(const KvSelection& what, KvMove& move) {
    const KvLayer& layer = sequence_.cache_->layers()[size_t(what.layer)];
    HeadPages& own = pages(what);
    move.layer = &layer;
    move.what = &what;
    move.own = &own;
    const int64_t length = what.count;
    // Another thread may have been first.
    if (what.held != own.length) return {Code::bad_shape, "the head holds another number of tokens"};
    for (int64_t i = 0; i < length; ++i) {
      if (what.kept[i] >= own.length || what.kept[i] < (i > 0 ? what.kept[i - 1] + 1 : 0)) {
        return {Code::bad_shape, "what is kept must be ascending tokens that are there"};
      }
    }
    while (move.same < length && what.kept[move.same] == move.same) ++move.same;
    if (evict_ && !layer.sees_all()) return {Code::bad_shape, "a layer with a window or chunks lets go by itself"};
    if (what.turn && layer.view) return {Code::bad_shape, "keys that are values, too, cannot be turned"};
    if (evict_ && length == 0 && own.length > 0) return {Code::bad_shape, "at least one token of a head is kept"};
    if (!evict_ && move.same < own.settled) return {Code::bad_shape, "tokens among these were evicted"};
    for (const int64_t edge : {what.turn_begin, what.turn_end}) {
      if (what.turn && edge > 0 && edge < own.settled) return {Code::bad_shape, "tokens before it were evicted"};
    }
    if (what.turn) move.same = std::min(move.same, std::max(what.turn_begin, int64_t(0)));
    move.moves = move.same < length;
    if (layer.key_group() > 1 && (move.moves || length < own.length)) {
      return {Code::bad_format, "keys that are coded by channel stay in their groups"};
    }
    HeadPages& next = move.next;
    next.length = length;
    next.missing = own.missing;
    next.settled = own.settled;
    if (evict_ && length < own.length) {
      next.missing += own.length - length;
      next.settled = length;
    }
    // Tokens that a window has let go of are none that can be moved: whole pages of others are what is left.
    const int64_t there = std::lower_bound(what.kept, what.kept + length, own.first * kPageTokens) - what.kept;
    next.first = pages_of(there);
    const int64_t first = move.moves ? next.first : own.first;
    if (length > 0 && first * kPageTokens > layer.first_seen(length + 1)) {
      return {Code::bad_shape, "a window has let go of tokens that would be seen again"};
    }
    return {};
  }

  // Tokens of a layer have one position in all heads.
  Status check_layers() {
    std::vector<int64_t> ends;
    for (const HeadPages& own : sequence_.pages_) ends.push_back(own.end());
    std::vector<bool> seen(ends.size());
    const auto place = [&](const KvSelection& what) { return size_t(sequence_.first_[size_t(what.layer)] + what.head); };
    for (const KvMove& move : moves_) {
      const size_t at = place(*move.what);
      if (seen[at]) return {Code::bad_shape, "a head is given twice"};
      seen[at] = true;
      ends[at] = move.next.end();
    }
    for (const KvMove& move : moves_) {
      const int64_t first = sequence_.first_[size_t(move.what->layer)];
      for (int32_t head = 0; head < move.layer->heads; ++head) {
        if (ends[size_t(first + head)] != move.next.end()) return {Code::bad_shape, "the heads of a layer lose as many tokens each"};
      }
    }
    return {};
  }

  Status take(KvMove& move) {
    if (!move.moves) return {};
    const KvLayer& layer = *move.layer;
    const HeadPages& own = *move.own;
    HeadPages& next = move.next;
    const int64_t end = pages_of(next.length);
    const int64_t same = next.first == own.first ? move.same / kPageTokens - next.first : 0;
    if (const Status s = take(move, layer.layout(), own.body, end - next.first, same, next.body); !s.ok()) return s;
    if (!layer.quantized()) return {};
    if (layer.tail > 0) {
      next.first_exact = std::max(next.length - layer.tail - kRollback, int64_t(0)) / kPageTokens;
      const Status s = take(move, layer.exact_layout(), own.exact, end - next.first_exact, 0, next.exact);
      if (!s.ok()) return s;
    }
    const int64_t sinks = std::min(end, pages_of(layer.sink));
    move.sinks_stay = move.same >= std::min(layer.sink, next.length);
    return take(move, layer.exact_layout(), own.sinks, sinks, move.sinks_stay ? sinks : 0, next.sinks);
  }

  // `count` pages, the first `same` of them as they are, others of `have` where nobody else holds them.
  Status take(KvMove& move, const PageLayout& layout, const std::vector<Page*>& have, int64_t count, int64_t same,
              std::vector<Page*>& out) {
    // Nothing throws once a page was taken.
    out.reserve(size_t(count));
    move.taken.reserve(move.taken.size() + size_t(count));
    for (int64_t i = 0; i < count; ++i) {
      Page* page = i < int64_t(have.size()) ? have[size_t(i)] : nullptr;
      const bool own = page && page->size && page->references.load(std::memory_order_acquire) == 1;
      if (i >= same && !own) {
        switch (pool_.take(layout, page)) {
          case PagePool::Want::page: break;
          case PagePool::Want::over_budget: return {Code::full, "the cache is full: its budget has no page left"};
          default: return {Code::no_memory, "no memory for a page"};
        }
        move.taken.push_back(page);
      }
      out.push_back(page);
    }
    return {};
  }

  Status move(int limit) {
    std::vector<KvMove*> moving;
    for (KvMove& each : moves_) {
      if (each.moves) moving.push_back(&each);
    }
    const int64_t count = int64_t(moving.size()), workers = std::min<int64_t>(limit > 0 ? limit : threads(), count);
    // Scratch is there for all before anything changes.
    Carver most;
    for (const KvMove* each : moving) {
      Carver needed;
      KvRowMover(kernels_).place(needed, *each);
      if (needed.bytes() > most.bytes()) most = needed;
    }
    const int64_t bytes = int64_t(most.bytes());
    auto* memory = static_cast<uint8_t*>(thread_scratch(size_t(bytes * workers), kCallScratch));
    if (!memory && count > 0) return {Code::no_memory, "no memory for scratch"};
    for (const bool trial : {true, false}) {
      std::atomic<bool> fits{true};
      parallel_for(workers, limit, [&](int64_t worker) {
        KvRowMover mover(kernels_);
        for (int64_t i = worker; i < count; i += workers) {
          const KvMove& each = *moving[size_t(i)];
          Carver carver(memory + worker * bytes);
          mover.place(carver, each);
          if ((!trial || each.what->turn || each.exact_rows() > 0) && !mover.run(each, trial)) fits.store(false);
        }
      });
      if (!fits.load()) return {Code::bad_shape, "a number is too large for the codec, or for an exact copy, where it would go"};
    }
    for (KvMove& each : moves_) commit(each);
    return {};
  }

  void commit(KvMove& move) {
    HeadPages &own = *move.own, &next = move.next;
    if (!move.moves) {
      const int64_t missing = next.missing, settled = next.settled;
      if (next.length < own.length) sequence_.cut(*move.layer, own, next.length);
      own.missing = missing;
      own.settled = settled;
      return;
    }
    const auto drop = [&](std::vector<Page*>& before, const std::vector<Page*>& after) {
      for (size_t i = 0; i < before.size(); ++i) {
        if (i >= after.size() || before[i] != after[i]) pool_.drop(before[i]);
      }
      before.clear();
    };
    drop(own.body, next.body);
    drop(own.exact, next.exact);
    drop(own.sinks, next.sinks);
    own = std::move(next);
    move.taken.clear();
  }

  KvSequence& sequence_;
  const Kernels& kernels_;
  PagePool& pool_;
  const bool evict_;
  std::vector<KvMove> moves_;
};

Status KvSequence::select(const KvSelection* heads, int64_t count, bool evict, int limit) {
  const Kernels* kernels;
  if (const Status s = current_kernels(kernels); !s.ok()) return s;
  const std::lock_guard lock(mutex_);
  try {
    return Selecting(*this, *kernels, evict).run(heads, count, limit);
  } catch (const std::bad_alloc&) {
    return {Code::no_memory, "no memory for the pages of a sequence"};
  }
}

}  // namespace kvant
