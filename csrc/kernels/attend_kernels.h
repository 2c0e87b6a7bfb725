// The table of attention over caches that an ISA provides, as kernels.h has the others.
#pragma once

#include "formats/kv.h"
#include "kernels/kernels.h"

namespace kvant {

// Rows of codes, 32 to a block, with a scale and perhaps a minimum for each block as halves; a row with one scale has
// it in the place of its first block.
struct KvRows {
  uint8_t* codes;
  uint16_t *scales, *mins;
};

// How rows of a codebook are scaled: the norm kept, the projection on the row kept, or the least error.
enum class KvRule : int32_t { norm = 0, unbiased = 1, least = 2 };

// Rows of a job: the keys of a page are read from the nearest cache by all of them. A multiple of every group.
constexpr int kMostTaskRows = 48;

// The queries of one key head over the pages of its keys: row r is head r % group of token first / group + r / group
// of the call, or what a task does of them.
struct AttendJob {
  const float* q;          // [rows], stride q_stride, in the coordinates of the keys
  const float* bias;       // [rows], added to every product
  const uint8_t* records;  // of q in eight bits, for quantized keys
  const uint8_t* low;      // of what they leave of q, for eight bits more; or null
  int64_t q_stride, first;
  int32_t rows, group, dim, value_dim;
  int32_t k_codec, v_codec;  // KvCodec
  int64_t position;          // of token 0 among the keys
  int64_t keys;              // that there are
  int64_t window, chunk;     // so many keys a token sees at most, its own among them; and those of its own chunk only
  bool causal;               // else it sees all
  bool fine;                 // weights in sixteen bits, for quantized values
  bool view;                 // values are the first elements of keys, and nothing is stored of them
  bool exactly[2];           // whether keys, and values, are taken from `exact` and `sinks` where they are there
  float scale, cap, inv_cap; // cap: 0 for none
  int64_t sink, tail;        // of keys that are seen exactly: so many first, and so many before a token's own
  int64_t key_group;         // and those of a group of so many that is not full
  int64_t first_page, first_exact;  // of body and exact
  int64_t pages;                    // of body
  const uint8_t* const* body;   // keys, then values, from v_offset on
  const uint8_t* const* exact;  // the same as halves
  const uint8_t* const* sinks;  // exact, for the first `sink` keys
  int64_t v_offset, exact_v_offset;  // of a view: none, 0

  KVANT_MEMBER bool near() const { return tail > 0 || key_group > 1; }
};

// What will be read next, asked for evenly while a page is worked on, at so many places in turn: what the processor
// fetches ahead by itself ends with each 4 KiB, and many lines at once wait for each other.
struct NextPage {
  static constexpr int kPlaces = 4;
  const uint8_t* from;
  int32_t lines;        // of each place, which follow each other
  int32_t rate;         // of those lines for 4096 units of work
  int32_t done, asked;  // units, lines of each place
};

// Before the sums of a state: the largest score in the first sixteen places, sixteen sums of exp(score - largest).
constexpr int kStateHead = 32, kStateSums = 16;
constexpr int32_t state_size(int32_t value_dim) { return kStateHead + (value_dim + 31) / 32 * 32; }

struct KvCodecKernels {
  // Codes of rows [rows][32 * blocks] filled up with zeros, of codebooks; a row that is too large gets an infinite scale.
  void (*encode)(const float* x, int rows, int dim, KvRule rule, const KvRows& out) noexcept;
  // Rows as blocks of a file, where its format is none of weights; false for a NaN or an infinity.
  bool (*encode_blocks)(const EncodeJob&) noexcept;
  // From and to the rows of a file.
  void (*read)(const uint8_t* bytes, int rows, int blocks, const KvRows& out) noexcept;
  void (*write)(const KvRows& rows, int count, int blocks, uint8_t* bytes) noexcept;
  // Into and out of a page, of keys and of values: `rows` tokens from the place `token` on.
  void (*put[2])(const KvRows& rows, int count, int blocks, uint8_t* side, int token) noexcept;
  void (*take[2])(const uint8_t* side, int token, int count, int blocks, const KvRows& rows) noexcept;
  // Keys with scales by channel, for which put and take are null: a group out of a page of halves into the page, both
  // from the place `token` on; and as floats, rows of whole blocks.
  void (*code_keys)(const uint8_t* halves, int token, int dim, uint8_t* side) noexcept;
  void (*decode_keys)(const uint8_t* side, int token, int count, int dim, float* out, int64_t stride) noexcept;
  // Codes of a page's keys or values for the products, a byte each. Up to `direct` rows need none.
  void (*expand[2])(const uint8_t* side, int blocks, uint8_t* out, NextPage& next) noexcept;
  int32_t direct[2];
  // Codes of the values that are the first value_blocks blocks of keys, out of those that expand[0] gave, or the page.
  void (*turn)(const uint8_t* codes, const uint8_t* side, int blocks, int value_blocks, uint8_t* out,
               NextPage& next) noexcept;
  // Scores [rows][kPageTokens] of rows row .. row + rows - 1 of a job, a group of at most `group`.
  void (*score)(const AttendJob&, const uint8_t* codes, const uint8_t* side, int row, int rows, float* scores,
                NextPage& next) noexcept;
  // sums of states (stride floats apart) += weights p [rows][kPageTokens] times the values of a page, of which the side
  // that their scales are in has `blocks`. The second takes weights in sixteen bits.
  void (*mix[2])(const uint8_t* codes, const uint8_t* side, int blocks, int value_dim, int rows, const float* p, float* sums,
              int64_t stride, NextPage& next) noexcept;
  int32_t group;     // rows of a record of queries
  int32_t offset;    // of codes of keys, as ProductShape wants it
};

struct AttendKernels {
  // For codecs that quantize.
  KvCodecKernels codec[kKvCodecCount];
  // states [rows][state_size] of a job's rows over one chunk. scratch: chunk_scratch() bytes.
  void (*chunk)(const AttendKernels&, const AttendJob&, int64_t chunk, uint8_t* scratch, float* states) noexcept;
  // states = states and more, in this order.
  void (*merge)(float* states, const float* more, int rows, int value_dim) noexcept;
  // out [value_dim] of one state; sink, unless null, is the score of a key without a value. lse, unless null, gets the
  // logarithm of the sum of all exp(score).
  void (*finish)(const float* state, const float* sink, int value_dim, float* out, float* lse) noexcept;
  // Keys [rows][dim] and values into the places from `token` on of a page of floats, by KvCodec. False if a number
  // overflows.
  bool (*put_keys[kFirstQuantized])(const float* x, int64_t stride, int rows, int dim, uint8_t* side, int token) noexcept;
  bool (*put_values[kFirstQuantized])(const float* x, int64_t stride, int rows, int dim, uint8_t* side, int token) noexcept;
  void (*take_keys[kFirstQuantized])(const uint8_t* side, int token, int rows, int dim, float* out, int64_t stride) noexcept;
  void (*take_values[kFirstQuantized])(const uint8_t* side, int token, int rows, int dim, float* out, int64_t stride) noexcept;
};

// Floats of a page's values, made of keys.
constexpr int64_t turned_bytes(int32_t value_dim) { return int64_t(kPageTokens) * 4 * kv_width(value_dim); }

// What a chunk needs: codes of a page, scores and weights of its rows; of a view the values of a page, and of its keys
// that are seen exactly, as floats.
constexpr int64_t chunk_scratch(int32_t rows, int32_t dim, int32_t value_dim, bool view) {
  const int64_t codes = kPageTokens * (dim + value_dim + 64), scores = 3 * int64_t(rows + 8) * kPageTokens * 4;
  return codes + scores + 256 + (view ? 3 * turned_bytes(value_dim) : 0);
}

}  // namespace kvant
