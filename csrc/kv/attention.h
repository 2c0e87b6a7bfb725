// Attention of the last tokens of one sequence in one layer, as tasks that depend on queries, keys and values only.
//
// A unit is some rows of a key head. Its queries are transformed and coded first; then it goes over all it sees, chunk by
// chunk, in one task; or each chunk is a task, and their states are merged in order, as many as there is room for at a time.
#pragma once

#include "isa/select.h"
#include "kv/cache.h"
#include "runtime/carver.h"

namespace kvant {

class Attention {
 public:
  Attention(const Kernels& kernels, const KvSequence& sequence, int layer, const KvQuery& query);

  // Whether there is what the queries see. Comes first.
  Status check();

  int64_t units() const { return units_; }
  int64_t chunks() const { return chunks_; }
  int64_t query_rows() const { return units_ * block_rows_; }
  // Multiplications at most; rows times chunks of a unit, and of all.
  double products() const { return double(query_.tokens * query_.heads) * double(keys_) * (layer_.dim + layer_.value_dim); }
  int64_t unit_work() const { return chunks_ * block_rows_; }
  int64_t work() const { return units_ * unit_work(); }
  // Floats of the states of one chunk of every unit.
  int64_t slot_floats() const { return units_ * block_rows_ * stride_; }

  // Memory of the call. slots: chunks of each unit whose states there is room for, two at least; 0 where units are tasks.
  // span: chunks of a task, otherwise.
  void place(Carver& carver, int64_t slots, int64_t span);
  void list_pages();

  // False where there is no memory for scratch, here as below.
  bool take_queries(int64_t unit) const;

  // Waves of tasks, as long as a wave has some; then what each unit has of it is merged.
  int64_t tasks(int64_t number) const { return units_ * ((wave(number).count + span_ - 1) / span_); }
  bool run(int64_t number, int64_t task) const;
  int64_t merges(int64_t number) const { return slots_ && wave(number).count ? units_ : 0; }
  void merge(int64_t number, int64_t unit) const;

  // Results out of the coordinates of rotated values.
  int64_t turned_pieces() const;
  void rotate_back(int64_t piece) const;

 private:
  static constexpr int64_t kTurnedRows = 64;

  // Chunks of a wave, counted from the first that a unit sees.
  struct Run {
    int64_t begin, count;
  };
  // Of a task: room for the states of its rows, twice, and what a chunk needs.
  struct TaskMemory {
    float *states, *more;
    uint8_t *scratch, *pages, *coder;
    explicit operator bool() const { return scratch != nullptr; }
  };

  const HeadPages& pages_of(int64_t unit) const { return sequence_.pages(index_, int(unit / blocks_)); }
  int64_t first_row(int64_t unit) const { return unit % blocks_ * block_rows_; }
  int rows_of(int64_t unit) const { return int(std::min(rows_ - first_row(unit), block_rows_)); }
  // The first key that a row of a head sees, and the chunks from it to the last.
  int64_t first_key(int head, int64_t row) const;
  int64_t first_chunk(int head, int64_t row) const { return first_key(head, row) / kChunkTokens; }
  int64_t end_chunk(int head) const;
  int64_t end_chunk(int64_t unit) const;

  // Keys whose scales are on the side of the query make what they multiply with from group to group.
  bool coded_keys() const { return int(codec_[0]) >= kFirstQuantized && kKvCodecs.row[int(codec_[0])].key_group == 1; }
  const KvCodecKernels& keys() const { return table_.codec[int(codec_[0])]; }
  ProductShape shape() const { return {1, kKvCodecs.row[int(codec_[0])].has_min, keys().offset}; }
  int64_t record_bytes() const { return kv_blocks(layer_.dim) * (40 + (shape().has_min ? 4 : 0)); }
  int64_t float_page() const { return kPageTokens * 4 * int64_t(layer_.dim + kv_width(layer_.value_dim)); }

  AttendJob job_of(int64_t unit) const;
  TaskMemory task_memory(int64_t states) const;
  // end: of the chunks that the task goes through.
  void chunk(int64_t unit, int64_t number, int64_t end, const TaskMemory& memory, float* states) const;
  void decode(const uint8_t* page, uint8_t* memory, uint8_t* out) const;
  void finish(int64_t unit, const float* states) const;
  // Some rows of a key head over all they see.
  bool whole(int64_t unit) const;
  Run wave(int64_t number) const;
  float* state(int64_t unit, int64_t slot) const { return states_ + (unit * slots_ + slot) * block_rows_ * stride_; }

  const Kernels& kernels_;
  const AttendKernels& table_;
  const KvSequence& sequence_;
  const int index_;
  const KvLayer& layer_;
  const KvQuery query_;
  const int32_t group_;
  const int64_t rows_, block_rows_, blocks_, units_, width_, stride_;
  KvCodec codec_[2];
  int64_t keys_ = 0, chunks_ = 1, slots_ = 0, span_ = 1, body_count_ = 0, exact_count_ = 0, sink_count_ = 0;
  float *q_ = nullptr, *bias_ = nullptr, *states_ = nullptr;
  uint8_t *records_ = nullptr, *low_ = nullptr;
  const uint8_t **body_ = nullptr, **exact_ = nullptr, **sinks_ = nullptr;
};

}  // namespace kvant
