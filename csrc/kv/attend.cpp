// The loops of a call over the units of all its sequences: short ones leave no thread without work.
#include <algorithm>
#include <atomic>
#include <new>

#include "isa/select.h"
#include "kv/attention.h"
#include "runtime/pool.h"

namespace kvant {
namespace {

// Of the states of chunks that wait to be merged.
constexpr int64_t kMostStateBytes = int64_t(64) << 20;
// Products of queries and keys that are done before another thread has woken up.
constexpr double kSmallAttend = 256 * 1024;
// A call of several threads has so many tasks for each, or more: cores are not always equally fast.
constexpr int64_t kTasksPerThread = 16;
// Queries that are coded before another thread has woken up.
constexpr int64_t kFewQueries = 64;

class Attentions {
 public:
  Attentions(const Kernels& kernels, std::span<const KvPart> parts, int layer, const KvQuery& query) {
    all_.reserve(parts.size());
    KvQuery own = query;
    for (size_t i = 0; i < parts.size(); ++i) {
      own.tokens = parts[i].tokens;
      if (own.tokens == 0) continue;
      all_.emplace_back(kernels, *parts[i].sequence, layer, own);
      numbers_.push_back(int64_t(i));
      const int64_t rows = own.tokens * own.heads;
      own.q += own.tokens * own.token_stride;
      own.out += rows * parts[i].sequence->cache()->layers()[size_t(layer)].value_dim;
      if (own.lse) own.lse += rows;
    }
    first_.resize(all_.size());
  }

  Status run(int limit, int64_t* which) {
    double products = 0;
    int64_t rows = 0;
    for (size_t i = 0; i < all_.size(); ++i) {
      if (const Status s = all_[i].check(); !s.ok()) {
        if (which) *which = numbers_[i];
        return s;
      }
      products += all_[i].products();
      rows += all_[i].query_rows();
    }
    if (products <= kSmallAttend) limit = 1;
    if (!place(limit)) return {Code::no_memory, "no memory for scratch"};
    each(rows < kFewQueries ? 1 : limit, [](const Attention& a) { return a.units(); },
         [](const Attention& a, int64_t unit) { return a.take_queries(unit); });
    for (int64_t wave = 0; !no_memory_.load(); ++wave) {
      const int64_t tasks = each(limit, [&](const Attention& a) { return a.tasks(wave); },
                                 [&](const Attention& a, int64_t task) { return a.run(wave, task); });
      if (tasks == 0) break;
      each(limit, [&](const Attention& a) { return a.merges(wave); },
           [&](const Attention& a, int64_t unit) { return a.merge(wave, unit), true; });
    }
    if (no_memory_.load()) return {Code::no_memory, "no memory for scratch"};
    each(limit, [](const Attention& a) { return a.turned_pieces(); },
         [](const Attention& a, int64_t piece) { return a.rotate_back(piece), true; });
    return {};
  }

 private:
  // Units that are much of the work are cut into chunks.
  bool place(int limit) {
    const int64_t workers = limit > 0 ? limit : threads(), tasks = workers > 1 ? kTasksPerThread * workers : 1;
    int64_t work = 0, slot_bytes = 0;
    for (const Attention& a : all_) work += a.work();
    const auto cut = [&](const Attention& a) { return a.chunks() > 1 && tasks * a.unit_work() > work; };
    for (const Attention& a : all_) slot_bytes += cut(a) ? a.slot_floats() * int64_t(sizeof(float)) : 0;
    const int64_t slots = std::max(kMostStateBytes / std::max(slot_bytes, int64_t(1)), int64_t(2));
    const bool enough = carve_call_scratch([&](Carver& carver) {
      for (Attention& a : all_) {
        const int64_t span = std::max(work * a.chunks() / (tasks * a.unit_work()), int64_t(1));
        a.place(carver, cut(a) ? std::min(a.chunks(), slots) : 0, span);
      }
    });
    for (Attention& a : all_) {
      if (enough) a.list_pages();
    }
    return enough;
  }

  // body(attention, i) for i below count(attention), of all in one loop; how many there were.
  template <class Count, class Body>
  int64_t each(int limit, Count&& count, Body&& body) {
    int64_t total = 0;
    for (size_t i = 0; i < all_.size(); ++i) {
      first_[i] = total;
      total += count(all_[i]);
    }
    parallel_for(total, limit, [&](int64_t task) {
      const size_t i = size_t(std::upper_bound(first_.begin(), first_.end(), task) - first_.begin()) - 1;
      if (!body(all_[i], task - first_[i])) no_memory_.store(true);
    });
    return total;
  }

  std::vector<Attention> all_;
  std::vector<int64_t> numbers_, first_;
  std::atomic<bool> no_memory_{false};
};

}  // namespace

Status KvSequence::attend(std::span<const KvPart> parts, int layer, const KvQuery& query, int limit, int64_t* which) {
  const Kernels* kernels;
  if (const Status s = current_kernels(kernels); !s.ok()) return s;
  try {
    const Locks locks(parts);
    return Attentions(*kernels, parts, layer, query).run(limit, which);
  } catch (const std::bad_alloc&) {
    return {Code::no_memory, "no memory for scratch"};
  }
}

}  // namespace kvant
