#include "kv/attend.h"

#include <atomic>

#include "isa/select.h"
#include "runtime/carver.h"
#include "runtime/pool.h"

namespace kvant {
namespace {

// Rows of one task: the keys of a page are read from the nearest cache by all of them.
constexpr int64_t kTaskRows = 48;
// Of the results of chunks that wait to be merged; beyond, whole rows are tasks.
constexpr int64_t kMostSplitBytes = int64_t(64) << 20;
// Tokens appended by one task.
constexpr int64_t kTaskTokens = 64;
// Work that is done before another thread has woken up: numbers appended, products of queries and keys.
constexpr int64_t kSmallAppend = 32 * 1024, kSmallAttend = 256 * 1024;

int64_t pieces(int64_t count, int64_t size) { return (count + size - 1) / size; }

class Call {
 public:
  Call(const AttendKernels& kernels, const KvPages& pages, const Attend& attend)
      : kernels_(kernels),
        pages_(pages),
        attend_(attend),
        group_(attend.heads / pages.heads),
        rows_(attend.tokens * group_),
        block_rows_(rows_ < kTaskRows ? rows_ : kTaskRows),
        blocks_(pieces(rows_, block_rows_)),
        stride_(kStateHead + pages.width()) {}

  Status run(int limit) {
    const int64_t units = pages_.heads * blocks_;
    const int64_t keys = attend_.position + attend_.tokens;
    const int64_t seen = keys < attend_.window ? keys : attend_.window;
    if (attend_.tokens * attend_.heads * seen <= kSmallAttend / (pages_.dim + pages_.value_dim)) limit = 1;
    const int64_t chunks = pieces(keys, kChunkTokens) - first_chunk(0);
    const int64_t split_bytes = units * chunks * block_rows_ * stride_ * int64_t(sizeof(float));
    if (chunks == 1 || units >= 4 * (limit > 0 ? limit : threads()) || split_bytes > kMostSplitBytes) {
      parallel_for(units, limit, [&](int64_t i) { whole(i); });
    } else {
      split(chunks, limit);
    }
    return no_memory_.load() ? Status{Code::no_memory, "no memory for scratch"} : Status{};
  }

 private:
  int64_t first_chunk(int64_t row) const {
    const int64_t seen = attend_.position + row / group_ + 1 - attend_.window;
    return seen > 0 ? seen / kChunkTokens : 0;
  }
  int64_t end_chunk(int64_t last_row) const { return (attend_.position + last_row / group_) / kChunkTokens + 1; }
  int64_t first_row(int64_t unit) const { return unit % blocks_ * block_rows_; }
  int rows_of(int64_t unit) const {
    const int64_t left = rows_ - first_row(unit);
    return int(left < block_rows_ ? left : block_rows_);
  }

  AttendJob job_of(int64_t unit) const {
    const int64_t head = unit / blocks_;
    return {attend_.q.x + head * group_ * attend_.q.head_stride,
            attend_.q.token_stride,
            attend_.q.head_stride,
            pages_.k_page(head, 0),
            pages_.v_page(head, 0),
            group_,
            pages_.dim,
            pages_.width(),
            attend_.position,
            attend_.window,
            attend_.scale};
  }

  void finish(int64_t unit, const float* states) {
    const int64_t head = unit / blocks_ * group_;
    for (int r = 0; r < rows_of(unit); ++r) {
      const int64_t row = first_row(unit) + r, at = head + row % group_;
      kernels_.finish(states + r * stride_, attend_.sinks ? attend_.sinks + at : nullptr, pages_.value_dim,
                      attend_.out + (row / group_ * attend_.heads + at) * pages_.value_dim);
    }
  }

  // Some rows of a key head over all they see.
  void whole(int64_t unit) {
    const int rows = rows_of(unit);
    Carver needed;
    const auto place = [&](Carver& carver, float*& scores, float*& states, float*& more) {
      scores = carver.take<float>(block_rows_ * kPageTokens);
      states = carver.take<float>(block_rows_ * stride_);
      more = carver.take<float>(block_rows_ * stride_);
    };
    float *scores, *states, *more;
    place(needed, scores, states, more);
    void* memory = thread_scratch(needed.bytes());
    if (!memory) return no_memory_.store(true);
    Carver carver(memory);
    place(carver, scores, states, more);
    const AttendJob job = job_of(unit);
    const int64_t first = first_row(unit), begin = first_chunk(first), end = end_chunk(first + rows - 1);
    kernels_.chunk[int(pages_.type)](job, first, rows, begin, scores, states);
    for (int64_t chunk = begin + 1; chunk < end; ++chunk) {
      kernels_.chunk[int(pages_.type)](job, first, rows, chunk, scores, more);
      kernels_.merge(states, more, rows, pages_.width());
    }
    finish(unit, states);
  }

  // Few rows and many keys: each chunk is a task, and the results are merged afterwards.
  void split(int64_t chunks, int limit) {
    const int64_t units = pages_.heads * blocks_, begin = first_chunk(0);
    float* states;
    const bool enough = carve_call_scratch([&](Carver& carver) {
      states = carver.take<float>(units * chunks * block_rows_ * stride_);
    });
    if (!enough) return no_memory_.store(true);
    const auto state = [&](int64_t unit, int64_t chunk) { return states + (unit * chunks + chunk) * block_rows_ * stride_; };
    parallel_for(units * chunks, limit, [&](int64_t i) {
      const int64_t unit = i / chunks, chunk = i % chunks;
      auto* scores = static_cast<float*>(thread_scratch(sizeof(float) * size_t(block_rows_) * kPageTokens));
      if (!scores) return no_memory_.store(true);
      kernels_.chunk[int(pages_.type)](job_of(unit), first_row(unit), rows_of(unit), begin + chunk, scores, state(unit, chunk));
    });
    if (no_memory_.load()) return;
    parallel_for(units, limit, [&](int64_t unit) {
      for (int64_t chunk = 1; chunk < chunks; ++chunk) {
        kernels_.merge(state(unit, 0), state(unit, chunk), rows_of(unit), pages_.width());
      }
      finish(unit, state(unit, 0));
    });
  }

  const AttendKernels& kernels_;
  const KvPages& pages_;
  const Attend& attend_;
  const int32_t group_;
  const int64_t rows_, block_rows_, blocks_, stride_;
  std::atomic<bool> no_memory_{false};
};

}  // namespace

Status kv_append(const KvPages& pages, int64_t position, int64_t tokens, const Heads& k, const Heads& v, int limit) {
  const Kernels* kernels;
  if (const Status s = current_kernels(kernels); !s.ok()) return s;
  if (tokens <= kSmallAppend / (pages.heads * int64_t(pages.dim + pages.value_dim))) limit = 1;
  const auto append = kernels->attend->append[int(pages.type)];
  parallel_for(pieces(tokens, kTaskTokens) * pages.heads, limit, [&](int64_t i) {
    const int64_t head = i % pages.heads, first = i / pages.heads * kTaskTokens;
    const int64_t end = first + kTaskTokens < tokens ? first + kTaskTokens : tokens;
    for (int64_t token = first; token < end; ++token) {
      const int64_t page = (position + token) / kPageTokens;
      append(k.x + token * k.token_stride + head * k.head_stride, pages.dim, pages.k_page(head, page),
             v.x + token * v.token_stride + head * v.head_stride, pages.value_dim, pages.width(),
             pages.v_page(head, page), int((position + token) % kPageTokens));
    }
  });
  return {};
}

Status kv_attend(const KvPages& pages, const Attend& attend, int limit) {
  const Kernels* kernels;
  if (const Status s = current_kernels(kernels); !s.ok()) return s;
  if (attend.tokens == 0) return {};
  return Call(*kernels->attend, pages, attend).run(limit);
}

}  // namespace kvant
