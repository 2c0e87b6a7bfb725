#include <algorithm>
#include <atomic>
#include <cstring>

#include "isa/select.h"
#include "kv/cache.h"
#include "kv/rows.h"
#include "runtime/pool.h"

namespace kvant {
namespace {

// Of the results of chunks that wait to be merged; beyond, whole rows are tasks.
constexpr int64_t kMostSplitBytes = int64_t(64) << 20;
// Products of queries and keys that are done before another thread has woken up.
constexpr int64_t kSmallAttend = 256 * 1024;

int64_t pieces(int64_t count, int64_t size) { return (count + size - 1) / size; }

}  // namespace

// One call. A unit is some rows of a key head: its queries are transformed and coded first, then go over all they see.
// The result depends on queries, keys and values only.
class Attention {
 public:
  Attention(const Kernels& kernels, const KvSequence& sequence, int layer, const KvQuery& query)
      : kernels_(kernels),
        table_(*kernels.attend),
        sequence_(sequence),
        index_(layer),
        layer_(sequence.cache()->layers()[size_t(layer)]),
        query_(query),
        group_(query.heads / layer_.heads),
        rows_(query.tokens * group_),
        block_rows_(std::min<int64_t>(rows_, kMostTaskRows)),
        blocks_(pieces(rows_, block_rows_)),
        units_(layer_.heads * blocks_),
        width_(kv_blocks(layer_.dim) * kKvBlock),
        stride_(state_size(layer_.value_dim)) {
    for (int side = 0; side < 2; ++side) {
      codec_[side] = query.exact ? KvCodec::f32 : layer_.codec[side];
    }
  }

  Status run(int limit) {
    int64_t most = 0;
    for (int head = 0; head < layer_.heads; ++head) {
      const HeadPages& own = sequence_.pages(index_, head);
      if (query_.causal && own.length < query_.tokens) return {Code::bad_shape, "there are fewer keys than queries"};
      // The last token that was there may ask again: it comes after all that were kept.
      if (query_.causal && !own.has(own.end() - query_.tokens + 1)) {
        return {Code::bad_shape, "keys that these queries see were evicted"};
      }
      if (first_key(head, 0) < own.first * kPageTokens) {
        return {Code::bad_shape, "the window has let go of keys that these queries see"};
      }
      most = std::max(most, own.length - first_key(head, 0));
      chunks_ = std::max(chunks_, end_chunk(head) - first_chunk(head, 0));
    }
    if (query_.tokens * query_.heads * most <= kSmallAttend / (layer_.dim + layer_.value_dim)) limit = 1;
    const int64_t split_bytes = units_ * chunks_ * block_rows_ * stride_ * int64_t(sizeof(float));
    const bool enough = units_ >= 4 * (limit > 0 ? limit : threads());
    split_ = chunks_ > 1 && !enough && split_bytes <= kMostSplitBytes;
    if (!prepare(limit)) return {Code::no_memory, "no memory for scratch"};
    if (split_) {
      split(limit);
    } else {
      parallel_for(units_, limit, [&](int64_t unit) { whole(unit); });
    }
    if (no_memory_.load()) return {Code::no_memory, "no memory for scratch"};
    if (layer_.transform[1].rotate) rotate_back(limit);
    return {};
  }

 private:
  const HeadPages& pages_of(int64_t unit) const { return sequence_.pages(index_, int(unit / blocks_)); }
  int64_t first_row(int64_t unit) const { return unit % blocks_ * block_rows_; }
  int rows_of(int64_t unit) const { return int(std::min(rows_ - first_row(unit), block_rows_)); }

  // The first key that a row of a head sees, and the chunks from it to the last.
  int64_t first_key(int head, int64_t row) const {
    const int64_t length = sequence_.pages(index_, head).length;
    const int64_t end = query_.causal ? length - query_.tokens + row / group_ + 1 : length;
    return layer_.first_seen(end);
  }
  int64_t first_chunk(int head, int64_t row) const { return first_key(head, row) / kChunkTokens; }
  int64_t end_chunk(int head) const { return pieces(sequence_.pages(index_, head).length, kChunkTokens); }
  int64_t end_chunk(int64_t unit) const {
    const int64_t length = pages_of(unit).length, last = first_row(unit) + rows_of(unit) - 1;
    const int64_t end = query_.causal ? length - query_.tokens + last / group_ + 1 : length;
    return pieces(end, kChunkTokens);
  }

  // Keys whose scales are on the side of the query make what they multiply with from group to group.
  bool coded_keys() const { return int(codec_[0]) >= kFirstQuantized && kKvCodecs.row[int(codec_[0])].key_group == 1; }
  const KvCodecKernels& keys() const { return table_.codec[int(codec_[0])]; }
  ProductShape shape() const { return {1, kKvCodecs.row[int(codec_[0])].has_min, keys().offset}; }
  int64_t record_bytes() const { return kv_blocks(layer_.dim) * (40 + (shape().has_min ? 4 : 0)); }

  // Queries, where their records begin, and the addresses of pages.
  bool prepare(int limit) {
    int64_t body = 0, exact = 0, sinks = 0;
    for (int head = 0; head < layer_.heads; ++head) {
      const HeadPages& own = sequence_.pages(index_, head);
      body = std::max(body, int64_t(own.body.size()));
      exact = std::max(exact, int64_t(own.exact.size()));
      sinks = std::max(sinks, int64_t(own.sinks.size()));
    }
    body_count_ = body, exact_count_ = exact, sink_count_ = sinks;
    const int64_t rows = units_ * block_rows_;
    const bool enough = carve_call_scratch([&](Carver& carver) {
      q_ = carver.take<float>(rows * width_);
      bias_ = carver.take<float>(rows);
      if (coded_keys()) records_ = carver.take<uint8_t>(rows * record_bytes());
      if (coded_keys() && layer_.fine) low_ = carver.take<uint8_t>(rows * record_bytes());
      body_ = carver.take<const uint8_t*>(layer_.heads * body);
      exact_ = carver.take<const uint8_t*>(layer_.heads * exact);
      sinks_ = carver.take<const uint8_t*>(layer_.heads * sinks);
      if (split_) states_ = carver.take<float>(units_ * chunks_ * block_rows_ * stride_);
    });
    if (!enough) return false;
    for (int head = 0; head < layer_.heads; ++head) {
      const HeadPages& own = sequence_.pages(index_, head);
      const auto list = [](const std::vector<Page*>& pages, const uint8_t** out) {
        for (size_t i = 0; i < pages.size(); ++i) out[i] = pages[i]->data;
      };
      list(own.body, body_ + head * body);
      list(own.exact, exact_ + head * exact);
      list(own.sinks, sinks_ + head * sinks);
    }
    parallel_for(units_, rows < 64 ? 1 : limit, [&](int64_t unit) { take_queries(unit); });
    return !no_memory_.load();
  }

  void take_queries(int64_t unit) {
    const int64_t head = unit / blocks_;
    const int rows = rows_of(unit), blocks = kv_blocks(layer_.dim);
    float* q = q_ + unit * block_rows_ * width_;
    const KvTransform& transform = layer_.transform[0];
    for (int r = 0; r < rows; ++r) {
      const int64_t row = first_row(unit) + r;
      const float* from = query_.q + row / group_ * query_.token_stride + (head * group_ + row % group_) * query_.head_stride;
      float* to = q + r * width_;
      memcpy(to, from, size_t(layer_.dim) * 4);
      std::fill(to + layer_.dim, to + width_, 0.0f);
      double bias = 0.0;
      if (!transform.center.empty()) {
        const float* center = transform.center.data() + head * layer_.dim;
        for (int d = 0; d < layer_.dim; ++d) bias += double(from[d]) * double(center[d]);
      }
      bias_[unit * block_rows_ + r] = float(bias);
      if (!transform.equalize.empty()) {
        const float* factor = transform.equalize.data() + head * layer_.dim;
        for (int d = 0; d < layer_.dim; ++d) to[d] *= factor[d];
      }
    }
    if (transform.rotate) {
      kernels_.ops->hadamard({{q, width_, q, width_, rows, layer_.dim},
                              transform.rotate,
                              transform.signs.empty() ? nullptr : transform.signs.data(),
                              false});
    }
    if (!coded_keys()) return;
    int8_t* codes;
    float *d, *left;
    int32_t* sums;
    Carver needed;
    const auto place = [&](Carver& carver) {
      left = carver.take<float>(low_ ? rows * width_ : 0);
      codes = carver.take<int8_t>(rows * width_);
      d = carver.take<float>(rows * blocks + 16);
      sums = carver.take<int32_t>(2 * (rows * blocks + 16));
    };
    place(needed);
    void* memory = thread_scratch(needed.bytes());
    if (!memory) return no_memory_.store(true);
    Carver carver(memory);
    place(carver);
    const auto code = [&](const float* x, uint8_t* records) {
      for (int r = 0; r < rows; ++r) {
        kernels_.matmul->quantize(x + r * width_, blocks, codes + r * width_, d + r * blocks, sums + 2 * r * blocks);
      }
      records += unit * block_rows_ * record_bytes();
      for (int r = 0; r < rows; r += keys().group) {
        const int count = std::min(rows - r, int(keys().group));
        int32_t places[kMostColumns];
        for (int i = 0; i < count; ++i) places[i] = r + i;
        kernels_.matmul->records({codes, d, sums, blocks}, places, count, 0, blocks, shape(), records + r * record_bytes());
      }
    };
    code(q, records_);
    if (!low_) return;
    for (int64_t i = 0; i < rows * width_; ++i) left[i] = q[i] - float(codes[i]) * d[i / kKvBlock];
    code(left, low_);
  }

  AttendJob job_of(int64_t unit) const {
    const int64_t head = unit / blocks_, at = unit * block_rows_;
    const HeadPages& own = pages_of(unit);
    AttendJob job = {};
    job.q = q_ + at * width_;
    job.bias = bias_ + at;
    job.records = coded_keys() ? records_ + at * record_bytes() : nullptr;
    job.low = low_ ? low_ + at * record_bytes() : nullptr;
    job.fine = layer_.fine;
    job.q_stride = width_;
    job.first = first_row(unit);
    job.rows = rows_of(unit);
    job.group = group_;
    job.dim = layer_.dim;
    job.value_dim = layer_.value_dim;
    job.k_codec = int32_t(codec_[0]);
    job.v_codec = int32_t(codec_[1]);
    job.position = own.length - query_.tokens;
    job.keys = own.length;
    job.window = layer_.window;
    job.chunk = layer_.chunk;
    job.view = layer_.view;
    job.causal = query_.causal;
    job.scale = query_.scale;
    job.cap = query_.cap;
    job.inv_cap = query_.cap > 0.0f ? 1.0f / query_.cap : 0.0f;
    if (layer_.quantized()) {
      for (int side = 0; side < 2; ++side) job.exactly[side] = layer_.info(side).quantized;
      job.sink = layer_.sink;
      job.tail = layer_.tail;
    }
    job.key_group = layer_.key_group();
    job.first_page = own.first;
    job.pages = int64_t(own.body.size());
    job.body = body_ + head * body_count_;
    job.v_offset = layer_.side_bytes(0);
    job.first_exact = own.first_exact;
    job.exact = exact_ + head * exact_count_;
    job.exact_v_offset = layer_.view ? 0 : layer_.exact_offset();
    job.sinks = sinks_ + head * sink_count_;
    return job;
  }

  int64_t float_page() const { return kPageTokens * 4 * int64_t(layer_.dim + kv_width(layer_.value_dim)); }

  // Of a task: room for the states of its rows, twice, and what a chunk needs.
  struct TaskMemory {
    float *states, *more;
    uint8_t *scratch, *pages, *coder;
    explicit operator bool() const { return scratch != nullptr; }
  };

  void chunk(int64_t unit, int64_t number, const TaskMemory& memory, float* states) const {
    AttendJob job = job_of(unit);
    const uint8_t* decoded[kChunkPages];
    if (query_.exact) {
      const int64_t first = std::max(number * kChunkPages, job.first_page);
      const int64_t end = std::min((number + 1) * kChunkPages, job.first_page + job.pages);
      for (int64_t page = first; page < end; ++page) {
        uint8_t* to = memory.pages + (page - first) * float_page();
        decode(job.body[page - job.first_page], memory.coder, to);
        decoded[page - first] = to;
      }
      job.body = decoded;
      job.first_page = first;
      job.pages = std::max(end - first, int64_t(0));
      job.v_offset = int64_t(kPageTokens) * 4 * layer_.dim;
    }
    table_.chunk(table_, job, number, memory.scratch, states);
  }

  // A page as floats.
  void decode(const uint8_t* page, uint8_t* memory, uint8_t* out) const {
    for (int side = 0; side < layer_.sides(); ++side) {
      KvCoder coder(kernels_, layer_, side);
      Carver carver(memory);
      coder.place(carver, kPageTokens);
      coder.take(page + (side ? layer_.side_bytes(0) : 0), 0, kPageTokens);
      coder.decode(kPageTokens);
      const auto put = side ? table_.put_values[0] : table_.put_keys[0];
      (void)put(coder.floats(), coder.width(), kPageTokens, layer_.size(side), out, 0);
      out += int64_t(kPageTokens) * 4 * layer_.dim;
    }
  }

  TaskMemory task_memory(int64_t states) {
    int64_t coder_bytes = 0;
    for (int side = 0; query_.exact && side < layer_.sides(); ++side) {
      KvCoder coder(kernels_, layer_, side);
      Carver needed;
      coder.place(needed, kPageTokens);
      coder_bytes = std::max(coder_bytes, int64_t(needed.bytes()));
    }
    TaskMemory task = {};
    const auto place = [&](Carver& carver) {
      task.states = carver.take<float>(states);
      task.more = carver.take<float>(states);
      task.scratch = carver.take<uint8_t>(chunk_scratch(int32_t(block_rows_), layer_.dim, layer_.value_dim, layer_.view));
      task.pages = carver.take<uint8_t>(query_.exact ? kChunkPages * float_page() : 0);
      task.coder = carver.take<uint8_t>(coder_bytes);
    };
    Carver needed;
    place(needed);
    void* memory = thread_scratch(needed.bytes());
    if (!memory) {
      no_memory_.store(true);
      return {};
    }
    Carver carver(memory);
    place(carver);
    return task;
  }

  void finish(int64_t unit, const float* states) {
    const int64_t head = unit / blocks_ * group_;
    for (int r = 0; r < rows_of(unit); ++r) {
      const int64_t row = first_row(unit) + r, at = head + row % group_, place = row / group_ * query_.heads + at;
      table_.finish(states + r * stride_, query_.sinks ? query_.sinks + at : nullptr, layer_.value_dim,
                    query_.out + place * layer_.value_dim, query_.lse ? query_.lse + place : nullptr);
    }
  }

  // Some rows of a key head over all they see.
  void whole(int64_t unit) {
    const TaskMemory memory = task_memory(block_rows_ * stride_);
    if (!memory) return;
    const int head = int(unit / blocks_);
    const int64_t begin = first_chunk(head, first_row(unit)), end = end_chunk(unit);
    chunk(unit, begin, memory, memory.states);
    for (int64_t number = begin + 1; number < end; ++number) {
      chunk(unit, number, memory, memory.more);
      table_.merge(memory.states, memory.more, rows_of(unit), layer_.value_dim);
    }
    finish(unit, memory.states);
  }

  // Few rows and many keys: each chunk is a task, and the results are merged afterwards.
  void split(int limit) {
    const auto state = [&](int64_t unit, int64_t i) { return states_ + (unit * chunks_ + i) * block_rows_ * stride_; };
    parallel_for(units_ * chunks_, limit, [&](int64_t i) {
      const int64_t unit = i / chunks_, number = first_chunk(int(unit / blocks_), 0) + i % chunks_;
      if (const TaskMemory memory = task_memory(0)) chunk(unit, number, memory, state(unit, i % chunks_));
    });
    if (no_memory_.load()) return;
    parallel_for(units_, limit, [&](int64_t unit) {
      for (int64_t i = 1; i < chunks_; ++i) {
        table_.merge(state(unit, 0), state(unit, i), rows_of(unit), layer_.value_dim);
      }
      finish(unit, state(unit, 0));
    });
  }

  void rotate_back(int limit) {
    const KvTransform& transform = layer_.transform[1];
    constexpr int64_t kRows = 64;
    const int64_t rows = query_.tokens * query_.heads;
    const int32_t dim = layer_.value_dim;
    parallel_for(pieces(rows, kRows), limit, [&](int64_t i) {
      float* x = query_.out + i * kRows * dim;
      kernels_.ops->hadamard({{x, dim, x, dim, std::min(rows - i * kRows, kRows), dim},
                              transform.rotate,
                              transform.signs.empty() ? nullptr : transform.signs.data(),
                              true});
    });
  }

  const Kernels& kernels_;
  const AttendKernels& table_;
  const KvSequence& sequence_;
  const int index_;
  const KvLayer& layer_;
  const KvQuery& query_;
  const int32_t group_;
  const int64_t rows_, block_rows_, blocks_, units_, width_, stride_;
  KvCodec codec_[2];
  bool split_ = false;
  int64_t chunks_ = 1, body_count_ = 0, exact_count_ = 0, sink_count_ = 0;
  float *q_ = nullptr, *bias_ = nullptr, *states_ = nullptr;
  uint8_t *records_ = nullptr, *low_ = nullptr;
  const uint8_t **body_ = nullptr, **exact_ = nullptr, **sinks_ = nullptr;
  std::atomic<bool> no_memory_{false};
};

Status KvSequence::attend(int layer, const KvQuery& query, int limit) const {
  const Kernels* kernels;
  if (const Status s = current_kernels(kernels); !s.ok()) return s;
  if (query.tokens == 0) return {};
  const std::lock_guard lock(mutex_);
  return Attention(*kernels, *this, layer, query).run(limit);
}

}  // namespace kvant
