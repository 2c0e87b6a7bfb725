// The front door: every argument is checked here, once; behind it everything assumes.
#include "capi/checks.h"

#include <cstring>

#include "codec/codec.h"
#include "files/strings.h"
#include "isa/select.h"
#include "ops/ops.h"
#include "probe/probe.h"
#include "runtime/buffer.h"
#include "runtime/pool.h"

using namespace kvant;

static thread_local const char* last_error = "no error";

int32_t kvant::report(Status status) {
  if (!status.ok()) last_error = status.what;
  return int32_t(status.code);
}

namespace {

static_assert(int32_t(Code::ok) == KVANT_OK && int32_t(Code::bad_shape) == KVANT_BAD_SHAPE);
static_assert(int32_t(Code::bad_format) == KVANT_BAD_FORMAT && int32_t(Code::busy) == KVANT_BUSY);
static_assert(int32_t(Code::unsupported_isa) == KVANT_UNSUPPORTED_ISA);
static_assert(int32_t(Float::f32) == KVANT_F32 && int32_t(Float::f16) == KVANT_F16);
static_assert(int32_t(Product::int8) == KVANT_PROBE_INT8 && int32_t(Product::f32) == KVANT_PROBE_F32);
static_assert(sizeof(kvant_row_error) == sizeof(RowError));
static_assert(sizeof(kvant_row_divergence) == sizeof(RowDivergence));
static_assert(int32_t(Activation::silu) == KVANT_SILU && int32_t(Activation::relu) == KVANT_RELU);

Status check_importance(const float* importance, int64_t rows, int64_t rows_per_vector) {
  if (importance && rows > 0 && rows_per_vector < 1) {
    return {Code::bad_shape, "importance needs at least one row per vector"};
  }
  return {};
}

Status check_rows(const RowsJob& job) {
  if (job.rows < 0 || job.cols < 0) return {Code::bad_shape, "negative number of rows or columns"};
  if (const Status s = check_aligned(job.x, KVANT_F32); !s.ok()) return s;
  return check_aligned(job.out, KVANT_F32);
}

bool is_finite(double x) { return x - x == 0; }

}  // namespace

Status kvant::check_rope(const Rope& r) {
  if (r.tokens < 0 || r.heads < 0) return {Code::bad_shape, "negative number of tokens or heads"};
  if (r.rotary < 2 || r.rotary % 2 || r.rotary > r.dim) {
    return {Code::bad_shape, "rotary must be even, from 2 to head_dim"};
  }
  if (!is_finite(r.theta) || r.theta < 1) return {Code::bad_shape, "theta must be a finite number of at least 1"};
  if (!is_finite(r.scale) || r.scale <= 0) return {Code::bad_shape, "scale must be a finite number above 0"};
  if (const Status s = check_aligned(r.factors, KVANT_F32); !s.ok()) return s;
  double smallest = 1;
  for (int32_t i = 0; r.factors && i < r.rotary / 2; ++i) {
    const double factor = double(r.factors[i]);
    if (!is_finite(factor) || factor <= 0) return {Code::bad_shape, "freq_factors must be finite numbers above 0"};
    smallest = factor < smallest ? factor : smallest;
  }
  for (int64_t i = 0; i < r.tokens; ++i) {
    const double position = double(r.positions[i]);
    if ((position < 0 ? -position : position) / r.scale / smallest > kMaxAngle) {
      return {Code::bad_shape, "a position makes an angle above 1e8"};
    }
  }
  if (const Status s = check_aligned(r.x, KVANT_F32); !s.ok()) return s;
  return check_aligned(r.out, KVANT_F32);
}

namespace {

Status check_probe(const void* p, int64_t bytes) {
  if (bytes < 0 || bytes % kProbeUnit) return {Code::bad_shape, "size is not a multiple of 4096 bytes"};
  if (reinterpret_cast<uintptr_t>(p) % 64) return {Code::bad_alignment, "memory is not aligned to 64 bytes"};
  return {};
}

}  // namespace

extern "C" {

KVANT_EXPORT const char* kvant_version(void) { return KVANT_VERSION; }

KVANT_EXPORT const char* kvant_error_text(void) { return last_error; }

KVANT_EXPORT int32_t kvant_format_count(void) { return kFormatCount; }

KVANT_EXPORT int32_t kvant_format_info(int32_t format, kvant_format* info) {
  if (format < 0 || format >= kFormatCount) return fail(Code::bad_format, "no such format");
  const FormatInfo& f = kFormats.row[format];
  *info = {f.name, f.ggml_type, f.block, f.block_bytes, f.group, f.can_encode, f.uses_importance};
  return KVANT_OK;
}

KVANT_EXPORT int32_t kvant_format_find(const char* name) {
  for (int32_t i = 0; i < kFormatCount; ++i) {
    if (strcmp(kFormats.row[i].name, name) == 0) return i;
  }
  return fail(Code::bad_format, "no such format");
}

KVANT_EXPORT int32_t kvant_isa_count(void) { return isa_count(); }
KVANT_EXPORT const char* kvant_isa_name(int32_t index) { return isa_name(index); }
KVANT_EXPORT bool kvant_isa_supported(int32_t index) { return isa_supported(index); }

KVANT_EXPORT const char* kvant_isa_current(void) {
  const Kernels* k;
  return report(current_kernels(k)) == KVANT_OK ? k->name : nullptr;
}

KVANT_EXPORT int32_t kvant_isa_use(const char* name) { return report(use_isa(name)); }

KVANT_EXPORT int32_t kvant_threads(void) { return threads(); }
KVANT_EXPORT void kvant_set_threads(int32_t n) { set_threads(n); }

KVANT_EXPORT void* kvant_buffer_alloc(size_t bytes) { return allocate_buffer(bytes); }
KVANT_EXPORT void kvant_buffer_free(void* buffer, size_t bytes) { free_buffer(buffer, bytes); }

KVANT_EXPORT int32_t kvant_encode(int32_t format, const void* x, int32_t type, int64_t rows, int64_t cols,
                                  int64_t row_stride, const float* importance, int64_t rows_per_vector,
                                  uint8_t* out, int64_t out_bytes, int32_t threads, int64_t* nonfinite) {
  if (nonfinite) *nonfinite = -1;
  KVANT_CHECK(check_matrix(format, rows, cols, type));
  const FormatInfo& info = kFormats.row[format];
  if (!info.can_encode) return fail(Code::bad_format, "this format can only be decoded");
  KVANT_CHECK(check_importance(importance, rows, rows_per_vector));
  if (out_bytes != rows * (cols / info.block * info.block_bytes)) {
    return fail(Code::bad_shape, "output has the wrong number of bytes");
  }
  KVANT_CHECK(check_aligned(x, type));
  KVANT_CHECK(check_aligned(importance, KVANT_F32));
  int64_t found = -1;
  const Status status = encode({x, Float(type), rows, cols, row_stride}, format, {importance, rows_per_vector}, out,
                               threads, found);
  if (nonfinite) *nonfinite = found;
  return report(status);
}

KVANT_EXPORT int32_t kvant_decode(int32_t format, const uint8_t* data, int64_t row_stride, int64_t data_rows,
                                  const int64_t* index, int64_t rows, int64_t cols, int32_t type, void* out,
                                  int32_t threads) {
  KVANT_CHECK(check_matrix(format, rows, cols, type));
  KVANT_CHECK(check_aligned(out, type));
  if (index) {
    for (int64_t i = 0; i < rows; ++i) {
      if (index[i] < 0 || index[i] >= data_rows) return fail(Code::bad_shape, "row index out of range");
    }
  } else if (rows > data_rows) {
    return fail(Code::bad_shape, "more rows wanted than there are");
  }
  return report(decode({data, format, rows, cols, row_stride, index}, Float(type), out, threads));
}

KVANT_EXPORT int32_t kvant_row_errors(int32_t format, const uint8_t* data, int64_t data_row_stride, const void* x,
                                      int32_t type, int64_t rows, int64_t cols, int64_t row_stride,
                                      const float* importance, int64_t rows_per_vector, kvant_row_error* out,
                                      int32_t threads) {
  KVANT_CHECK(check_matrix(format, rows, cols, type));
  KVANT_CHECK(check_importance(importance, rows, rows_per_vector));
  KVANT_CHECK(check_aligned(x, type));
  KVANT_CHECK(check_aligned(importance, KVANT_F32));
  return report(row_errors({x, Float(type), rows, cols, row_stride},
                           {data, format, rows, cols, data_row_stride, nullptr}, {importance, rows_per_vector},
                           reinterpret_cast<RowError*>(out), threads));
}

KVANT_EXPORT int32_t kvant_validate(int32_t format, const uint8_t* data, int64_t row_stride, int64_t rows,
                                    int64_t cols, int32_t threads, int64_t* block) {
  *block = -1;
  KVANT_CHECK(check_matrix(format, rows, cols, KVANT_F32));
  return report(first_invalid_block({data, format, rows, cols, row_stride, nullptr}, threads, *block));
}

KVANT_EXPORT int32_t kvant_rms_norm(const float* x, int64_t x_stride, const float* weight, double eps, int64_t rows,
                                    int64_t cols, float* out, int64_t out_stride, int32_t threads) {
  const RowsJob job = {x, x_stride, out, out_stride, rows, cols};
  KVANT_CHECK(check_rows(job));
  KVANT_CHECK(check_aligned(weight, KVANT_F32));
  if (!is_finite(eps) || eps < 0) return fail(Code::bad_shape, "eps must be a finite number of at least 0");
  return report(rms_norm(job, weight, eps, threads));
}

KVANT_EXPORT int32_t kvant_softmax(const float* x, int64_t x_stride, double scale, int64_t rows, int64_t cols,
                                   float* out, int64_t out_stride, int32_t threads) {
  const RowsJob job = {x, x_stride, out, out_stride, rows, cols};
  KVANT_CHECK(check_rows(job));
  if (!is_finite(scale)) return fail(Code::bad_shape, "scale must be a finite number");
  return report(softmax(job, scale, threads));
}

KVANT_EXPORT int32_t kvant_hadamard(const float* x, int64_t x_stride, int64_t rows, int64_t cols, int32_t block,
                                    const float* signs, bool inverse, float* out, int64_t out_stride, int32_t threads) {
  const RowsJob job = {x, x_stride, out, out_stride, rows, cols};
  KVANT_CHECK(check_rows(job));
  KVANT_CHECK(check_aligned(signs, KVANT_F32));
  if (block < kLeastHadamard || block > kMostHadamard || (block & (block - 1)) || cols % block) {
    return fail(Code::bad_shape, "block must be a power of two from 16 to 512 that divides the columns");
  }
  for (int32_t i = 0; signs && i < block; ++i) {
    if (signs[i] != 1.0f && signs[i] != -1.0f) return fail(Code::bad_shape, "signs must be +1 or -1");
  }
  return report(hadamard({job, block, signs, inverse}, threads));
}

KVANT_EXPORT int32_t kvant_scale(const float* x, int64_t x_stride, double factor, int64_t rows, int64_t cols,
                                 float* out, int64_t out_stride, int32_t threads) {
  const RowsJob job = {x, x_stride, out, out_stride, rows, cols};
  KVANT_CHECK(check_rows(job));
  if (!is_finite(factor)) return fail(Code::bad_shape, "factor must be a finite number");
  return report(scale(job, factor, threads));
}

KVANT_EXPORT int32_t kvant_add(const float* x, int64_t x_stride, int64_t rows, int64_t cols, float* y,
                               int64_t y_stride, int32_t threads) {
  const RowsJob job = {x, x_stride, y, y_stride, rows, cols};
  KVANT_CHECK(check_rows(job));
  return report(add(job, threads));
}

KVANT_EXPORT int32_t kvant_route(const float* scores, int64_t stride, int64_t rows, int64_t experts, int64_t top,
                                 int32_t shares_of, int64_t* ids, float* shares, int32_t threads) {
  KVANT_CHECK(check_rows({scores, stride, shares, top, rows, experts}));
  if (top < 1 || top > experts) return fail(Code::bad_shape, "expected to choose from 1 to all experts");
  if (shares_of < KVANT_SHARES_OF_ALL || shares_of > KVANT_SHARES_OF_CHOSEN) {
    return fail(Code::bad_format, "no such kind of shares");
  }
  return report(route({scores, stride, rows, experts, top, SharesOf(shares_of), ids, shares}, threads));
}

KVANT_EXPORT int32_t kvant_activation_mul(int32_t activation, const float* gate, int64_t gate_stride, const float* up,
                                          int64_t up_stride, int64_t rows, int64_t cols, float* out,
                                          int64_t out_stride, int32_t threads) {
  if (activation < 0 || activation >= kActivationCount) return fail(Code::bad_format, "no such activation");
  const RowsJob job = {gate, gate_stride, out, out_stride, rows, cols};
  KVANT_CHECK(check_rows(job));
  KVANT_CHECK(check_aligned(up, KVANT_F32));
  return report(activation_mul(Activation(activation), job, up, up_stride, threads));
}

KVANT_EXPORT int32_t kvant_rope(const float* x, int64_t token_stride, int64_t head_stride, const int64_t* positions,
                                int64_t tokens, int32_t heads, int32_t head_dim, int32_t rotary, bool interleaved,
                                double theta, double scale, const float* freq_factors, float* out,
                                int64_t out_token_stride, int64_t out_head_stride, int32_t threads) {
  const Rope job = {x,     token_stride, head_stride,  positions, tokens,           heads,          head_dim, rotary,
                    interleaved, theta,  scale,        freq_factors, out, out_token_stride, out_head_stride};
  KVANT_CHECK(check_rope(job));
  return report(rope(job, threads));
}

KVANT_EXPORT int32_t kvant_divergence(const float* base, int64_t base_stride, const float* test, int64_t test_stride,
                                      int64_t rows, int64_t vocab, kvant_row_divergence* out, int32_t threads) {
  if (rows < 0 || vocab < 1) return fail(Code::bad_shape, "needs logits of at least one token");
  KVANT_CHECK(check_aligned(base, KVANT_F32));
  KVANT_CHECK(check_aligned(test, KVANT_F32));
  return report(divergence({base, base_stride, test, test_stride, rows, vocab, reinterpret_cast<RowDivergence*>(out)},
                           threads));
}

KVANT_EXPORT int64_t kvant_scan_strings(const uint8_t* data, int64_t size, int64_t offset, int64_t count,
                                        bool* utf8, uint64_t* offsets) {
  return scan_strings(data, size, offset, count, *utf8, offsets);
}

KVANT_EXPORT int32_t kvant_probe_read(const void* data, int64_t bytes, int32_t streams, int32_t threads,
                                      uint32_t* sum) {
  KVANT_CHECK(check_probe(data, bytes));
  if (streams != 1 && streams != 2 && streams != 4 && streams != 8) {
    return fail(Code::bad_shape, "streams must be 1, 2, 4 or 8");
  }
  uint32_t found = 0;
  const Status status = probe_read(static_cast<const uint8_t*>(data), bytes, streams, threads, found);
  if (sum) *sum = found;
  return report(status);
}

KVANT_EXPORT int32_t kvant_probe_copy(const void* from, void* to, int64_t bytes, bool around, int32_t threads) {
  KVANT_CHECK(check_probe(from, bytes));
  KVANT_CHECK(check_probe(to, bytes));
  return report(probe_copy(static_cast<const uint8_t*>(from), static_cast<uint8_t*>(to), bytes, around, threads));
}

KVANT_EXPORT int32_t kvant_probe_store(void* to, int64_t bytes, const void* from, int64_t from_bytes,
                                       int32_t threads) {
  KVANT_CHECK(check_probe(to, bytes));
  if (from_bytes < 0) return fail(Code::bad_shape, "negative number of bytes");
  return report(probe_store(static_cast<uint8_t*>(to), bytes, static_cast<const uint8_t*>(from), from_bytes, threads));
}

KVANT_EXPORT int32_t kvant_probe_products(int32_t kind, int64_t steps, int64_t tasks, int32_t threads,
                                          int64_t* products, double* sum) {
  if (kind != KVANT_PROBE_INT8 && kind != KVANT_PROBE_F32) return fail(Code::bad_format, "no such probe");
  if (steps < 1 || tasks < 1 || steps > INT64_MAX / 4096 / tasks) {
    return fail(Code::bad_shape, "steps and tasks must be positive, and few enough to be counted");
  }
  double found = 0;
  const Status status = probe_products(Product(kind), steps, tasks, threads, *products, found);
  if (sum) *sum = found;
  return report(status);
}

KVANT_EXPORT void kvant_probe_ticks(int64_t steps) { probe_ticks(steps); }

}  // extern "C"
