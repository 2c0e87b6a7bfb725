#include "kv/attention.h"

#include <algorithm>
#include <cstring>

#include "kv/rows.h"

namespace kvant {
namespace {

int64_t pieces(int64_t count, int64_t size) { return (count + size - 1) / size; }

}  // namespace

Attention::Attention(const Kernels& kernels, const KvSequence& sequence, int layer, const KvQuery& query)
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

Status Attention::check() {
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
    keys_ = std::max(keys_, own.length - first_key(head, 0));
    chunks_ = std::max(chunks_, end_chunk(head) - first_chunk(head, 0));
  }
  return {};
}

int64_t Attention::first_key(int head, int64_t row) const {
  const int64_t length = sequence_.pages(index_, head).length;
  const int64_t end = query_.causal ? length - query_.tokens + row / group_ + 1 : length;
  return layer_.first_seen(end);
}

int64_t Attention::end_chunk(int head) const { return pieces(sequence_.pages(index_, head).length, kChunkTokens); }

int64_t Attention::end_chunk(int64_t unit) const {
  const int64_t length = pages_of(unit).length, last = first_row(unit) + rows_of(unit) - 1;
  const int64_t end = query_.causal ? length - query_.tokens + last / group_ + 1 : length;
  return pieces(end, kChunkTokens);
}

void Attention::place(Carver& carver, int64_t slots, int64_t span) {
  slots_ = slots;
  span_ = span;
  body_count_ = exact_count_ = sink_count_ = 0;
  for (int head = 0; head < layer_.heads; ++head) {
    const HeadPages& own = sequence_.pages(index_, head);
    body_count_ = std::max(body_count_, int64_t(own.body.size()));
    exact_count_ = std::max(exact_count_, int64_t(own.exact.size()));
    sink_count_ = std::max(sink_count_, int64_t(own.sinks.size()));
  }
  const int64_t rows = units_ * block_rows_;
  q_ = carver.take<float>(rows * width_);
  bias_ = carver.take<float>(rows);
  if (coded_keys()) records_ = carver.take<uint8_t>(rows * record_bytes());
  if (coded_keys() && layer_.fine) low_ = carver.take<uint8_t>(rows * record_bytes());
  body_ = carver.take<const uint8_t*>(layer_.heads * body_count_);
  exact_ = carver.take<const uint8_t*>(layer_.heads * exact_count_);
  sinks_ = carver.take<const uint8_t*>(layer_.heads * sink_count_);
  states_ = carver.take<float>(slots_ * slot_floats());
}

void Attention::list_pages() {
  for (int head = 0; head < layer_.heads; ++head) {
    const HeadPages& own = sequence_.pages(index_, head);
    const auto list = [](const std::vector<Page*>& pages, const uint8_t** out) {
      for (size_t i = 0; i < pages.size(); ++i) out[i] = pages[i]->data;
    };
    list(own.body, body_ + head * body_count_);
    list(own.exact, exact_ + head * exact_count_);
    list(own.sinks, sinks_ + head * sink_count_);
  }
}

bool Attention::take_queries(int64_t unit) const {
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
  if (!coded_keys()) return true;
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
  if (!memory) return false;
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
  if (!low_) return true;
  for (int64_t i = 0; i < rows * width_; ++i) left[i] = q[i] - float(codes[i]) * d[i / kKvBlock];
  code(left, low_);
  return true;
}

AttendJob Attention::job_of(int64_t unit) const {
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

void Attention::chunk(int64_t unit, int64_t number, int64_t end, const TaskMemory& memory, float* states) const {
  AttendJob job = job_of(unit);
  job.pages = std::min(job.pages, std::max(end * kChunkPages - job.first_page, int64_t(0)));
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
void Attention::decode(const uint8_t* page, uint8_t* memory, uint8_t* out) const {
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

Attention::TaskMemory Attention::task_memory(int64_t states) const {
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
  if (!memory) return {};
  Carver carver(memory);
  place(carver);
  return task;
}

void Attention::finish(int64_t unit, const float* states) const {
  const int64_t head = unit / blocks_ * group_;
  for (int r = 0; r < rows_of(unit); ++r) {
    const int64_t row = first_row(unit) + r, at = head + row % group_, place = row / group_ * query_.heads + at;
    table_.finish(states + r * stride_, query_.sinks ? query_.sinks + at : nullptr, layer_.value_dim,
                  query_.out + place * layer_.value_dim, query_.lse ? query_.lse + place : nullptr);
  }
}

bool Attention::whole(int64_t unit) const {
  const TaskMemory memory = task_memory(block_rows_ * stride_);
  if (!memory) return false;
  const int head = int(unit / blocks_);
  const int64_t begin = first_chunk(head, first_row(unit)), end = end_chunk(unit);
  chunk(unit, begin, end, memory, memory.states);
  for (int64_t number = begin + 1; number < end; ++number) {
    chunk(unit, number, end, memory, memory.more);
    table_.merge(memory.states, memory.more, rows_of(unit), layer_.value_dim);
  }
  finish(unit, memory.states);
  return true;
}

Attention::Run Attention::wave(int64_t number) const {
  if (!slots_) return {0, number == 0 ? 1 : 0};
  // All but the first slot are free again once they were merged into it.
  const int64_t begin = number ? 1 + number * (slots_ - 1) : 0;
  return {begin, std::clamp(1 + (number + 1) * (slots_ - 1) - begin, int64_t(0), std::max(chunks_ - begin, int64_t(0)))};
}

bool Attention::run(int64_t number, int64_t task) const {
  if (!slots_) return whole(task);
  const Run run = wave(number);
  const int64_t each = pieces(run.count, span_), unit = task / each, begin = task % each * span_;
  const int64_t end = std::min(begin + span_, run.count), first = first_chunk(int(unit / blocks_), 0) + run.begin;
  const TaskMemory memory = task_memory(0);
  if (!memory) return false;
  for (int64_t i = begin; i < end; ++i) chunk(unit, first + i, first + end, memory, state(unit, (number ? 1 : 0) + i));
  return true;
}

void Attention::merge(int64_t number, int64_t unit) const {
  const Run run = wave(number);
  for (int64_t slot = 1; slot < run.count + (number ? 1 : 0); ++slot) {
    table_.merge(state(unit, 0), state(unit, slot), rows_of(unit), layer_.value_dim);
  }
  if (run.begin + run.count == chunks_) finish(unit, state(unit, 0));
}

int64_t Attention::turned_pieces() const {
  return layer_.transform[1].rotate ? pieces(query_.tokens * query_.heads, kTurnedRows) : 0;
}

void Attention::rotate_back(int64_t piece) const {
  const KvTransform& transform = layer_.transform[1];
  const int64_t rows = query_.tokens * query_.heads;
  const int32_t dim = layer_.value_dim;
  float* x = query_.out + piece * kTurnedRows * dim;
  kernels_.ops->hadamard({{x, dim, x, dim, std::min(rows - piece * kTurnedRows, kTurnedRows), dim},
                          transform.rotate,
                          transform.signs.empty() ? nullptr : transform.signs.data(),
                          true});
}

}  // namespace kvant
