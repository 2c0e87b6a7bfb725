// The tables of function pointers that an ISA provides, one per unit of isa/. Kernels are noexcept and assume what the
// front door has checked; every entry gives the same bits on every ISA.
#pragma once

#include <cstdint>

#include "formats/list.h"
#include "formats/tile.h"

namespace kvant {

enum class Float : int32_t { f32 = 0, f16 = 1, bf16 = 2 };

// Most rows one encode call may take.
constexpr int kMaxEncodeRows = 256;

struct EncodeJob {
  const float* x;           // rows of `cols` floats
  int64_t row_stride;       // floats from row to row
  const float* importance;  // one weight per column, or null
  uint8_t* out;             // rows of packed blocks
  int64_t out_stride;       // bytes from row to row
  int32_t rows;
  int64_t cols;             // a multiple of the block
};

// Sums over one row, in float64: sixteen interleaved partial sums, halved together at the end.
struct RowError {
  double ee, xx, yy, xy, wee, wxx, max;
};

struct CodecKernels {
  // False if x holds a NaN or an infinity; what lies in out is then of no use.
  bool (*encode[kFormatCount])(const EncodeJob&) noexcept;
  // stream: write around the caches; out is then aligned to 64 bytes.
  void (*decode[kFormatCount])(const uint8_t* src, float* out, int64_t blocks, bool stream) noexcept;
  // Index of the first block whose scale is not a finite number of the format, or -1.
  int64_t (*first_invalid[kFormatCount])(const uint8_t* src, int64_t blocks) noexcept;
  // Index of the first NaN or infinity, or -1.
  int64_t (*first_nonfinite)(const void* x, Float type, int64_t count) noexcept;
  void (*widen)(const uint16_t* x, Float type, float* out, int64_t count) noexcept;
  void (*narrow)(const float* x, Float type, uint16_t* out, int64_t count) noexcept;
  void (*row_error)(const float* x, const float* y, const float* w, int64_t count, RowError& out) noexcept;
};

// Activations of a product: rows of `blocks` blocks of 32, with the sums of each sixteen.
struct Activations {
  const int8_t* q;
  const float* d;
  const int32_t* sums;
  int64_t blocks;
};

// What the inner loop must know of a weight format.
struct ProductShape {
  int32_t groups;   // of scales in a block of 32: 1 or 2
  bool has_min;
  int32_t offset;   // of the stored codes
};

constexpr int kMostTiles = 4, kMostColumns = 8;

// What comes next, to be asked for while this is worked on: so many lines of 64 bytes with each step,
// and with each panel, of the places in turn.
struct Ahead {
  const uint8_t* from[kMostTiles];
  int32_t places, step_lines, panel_lines;
};

// y [columns][tiles][16] += tiles x records, over one chunk and several panels; y = tiles x records, if
// fresh.
using MultiplyKernel = void (*)(const RowTile* tiles, const uint8_t* records, int blocks, int panels, bool fresh,
                                float* y, const Ahead& ahead) noexcept;
using MultiplyFloats = void (*)(const float* weights, const float* x, int columns, int panels, bool fresh,
                                float* y) noexcept;

template <int... c>
struct ColumnList {};

// A chunk holds up to 256 columns of sixteen rows; counts are in blocks of the format.
struct FormatProducts {
  void (*pack)(const uint8_t* const* rows, int blocks, uint8_t* out) noexcept;
  void (*unpack)(const uint8_t* packed, int blocks, uint8_t* const* rows) noexcept;
  void (*expand)(const uint8_t* packed, int blocks, RowTile& tile, const Ahead& ahead) noexcept;
  // y [16] += a packed chunk times the records of one row of x, for floats the row itself; null where a tile
  // between is as fast.
  void (*stream)(const uint8_t* packed, int blocks, const uint8_t* records, float* y) noexcept;
  // Decoded, [column][row]; the tile is scratch.
  void (*floats)(const uint8_t* packed, int blocks, RowTile& tile, float* out) noexcept;
  ProductShape shape;
  MultiplyKernel multiply[kMostTiles][kMostColumns];
  // Faster, for tiles that are all steady; null where there is no such kernel.
  MultiplyKernel multiply_steady[kMostTiles][kMostColumns];
};

struct MatmulKernels {
  // The largest register tile, for products of floats and for groups of 32 and 16.
  int32_t tiles, float_columns, columns[2];
  void (*quantize)(const float* x, int64_t blocks, int8_t* q, float* d, int32_t* sums) noexcept;
  // rows: of a, one for each column.
  void (*records)(const Activations& a, const int32_t* rows, int columns, int64_t first, int blocks,
                  const ProductShape& shape, uint8_t* out) noexcept;
  MultiplyFloats floats[kMostTiles][kMostColumns];
  // y[i] = sums[i], with one NaN for all.
  void (*finish)(const float* sums, int64_t count, float* y) noexcept;
  FormatProducts format[kFormatCount];
};

enum class Activation : int32_t { silu = 0, gelu = 1, gelu_tanh = 2, relu = 3 };
constexpr int kActivationCount = 4;

// Rows of `cols` floats, strides in floats. out may be x itself, and only that of what overlaps.
struct RowsJob {
  const float* x;
  int64_t stride;
  float* out;
  int64_t out_stride;
  int64_t rows, cols;
};

// The heads of one token. cos and sin hold rotary / 2 floats each, or, interleaved, rotary floats: both
// of a pair, the sine of the first negated; either is filled up to a multiple of 16.
struct RopeJob {
  const float* x;
  int64_t stride;  // floats from head to head
  float* out;
  int64_t out_stride;
  int32_t heads, dim, rotary;
  bool interleaved;
  const float* cos;
  const float* sin;
};

// Of two rows of logits: KL(base || test) in nats, the logs of the sums of their exponentials, and where the first
// of their largest stands.
struct RowDivergence {
  double kl, base_lse, test_lse;
  int64_t base_top, test_top;
};

// Blocks of `block` columns of every row. signs: `block` floats of +1 and -1, or null.
struct HadamardJob {
  RowsJob rows;
  int32_t block;
  const float* signs;
  bool inverse;
};
constexpr int kLeastHadamard = 16, kMostHadamard = 512;

struct OpKernels {
  // weight may be null. eps and scale are rounded to f32 in here, where the rounding mode is known.
  void (*rms_norm)(const RowsJob&, const float* weight, double eps) noexcept;
  void (*softmax)(const RowsJob&, double scale) noexcept;
  // block is a power of two from kLeastHadamard to kMostHadamard, and divides cols.
  void (*hadamard)(const HadamardJob&) noexcept;
  // out = x * factor, the factor rounded to f32 in here
  void (*scale)(const float* x, double factor, float* out, int64_t count) noexcept;
  // out += x
  void (*add)(const float* x, float* out, int64_t count) noexcept;
  void (*activation_mul[kActivationCount])(const float* gate, const float* up, float* out, int64_t count) noexcept;
  // out = weights[r] * row r + out for each row in order, from +0 on; rows are stride floats apart.
  void (*weighted_sum)(const float* rows, int64_t stride, const float* weights, int64_t count, float* out,
                       int64_t cols) noexcept;
  // theta^(-2i / rotary), divided by factors[i] where there are any.
  void (*rope_frequencies)(double theta, const float* factors, int32_t rotary, double* out) noexcept;
  // The tables of one position as RopeJob wants them; position * frequencies[i] is below kMaxAngle.
  void (*rope_angles)(double position, const double* frequencies, int32_t pairs, bool interleaved, float* cos,
                      float* sin) noexcept;
  void (*rope)(const RopeJob&) noexcept;
  // count is at least 1.
  void (*divergence)(const float* base, const float* test, int64_t count, RowDivergence& out) noexcept;
};

constexpr double kMaxAngle = 1e8;

// In kernels/attend_kernels.h.
struct AttendKernels;

// Loops that only load the machine. Memory is aligned to 64 bytes and its size a multiple of
// kProbeUnit. They return what keeps a compiler from leaving them out, and a test can check.
constexpr int64_t kProbeUnit = 4096;

struct ProbeKernels {
  // The sum of all 32-bit words, modulo 2^32, read at 1, 2, 4 or 8 places at once.
  uint32_t (*read[4])(const uint8_t* p, int64_t bytes) noexcept;
  void (*copy)(const uint8_t* from, uint8_t* to, int64_t bytes, bool stream) noexcept;
  // Writes zeros around the caches and meanwhile touches every line of `from`, evenly.
  uint64_t (*store)(uint8_t* to, int64_t bytes, const uint8_t* from, int64_t from_bytes) noexcept;
  // Products of registers, summed up; each product is 1.
  double (*dot)(int64_t steps) noexcept;
  double (*fma)(int64_t steps) noexcept;
  int32_t dot_products, fma_products;  // of one step
};

struct Kernels {
  const char* name;
  const CodecKernels* codec;
  const MatmulKernels* matmul;
  const OpKernels* ops;
  const ProbeKernels* probe;
  const AttendKernels* attend;
};

}  // namespace kvant
