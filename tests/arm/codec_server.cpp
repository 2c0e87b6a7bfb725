// Serves the C ABI on stdin and stdout, so that a build for another processor can be tested under
// an emulator. Both ends are little-endian.
//   request   int64 op, format, rows, cols, x_rows, option, bytes; then `bytes` of payload
//   reply     int64 code, bytes; then the result
// ops: 0 list ISAs as "name supported" lines, 1 use the ISA named by the payload,
//      2 encode f32 rows (importance behind them if option is 1), 3 decode packed rows to f32,
//      4 first invalid block, 5 pack, 6 unpack,
//      7 multiply x_rows rows of f32, the weights behind them; option: 1 packed, 2 f32 activations
//      8 rms_norm (weight behind x), 9 softmax of half of x, 10 activation `format` of gates times up behind them,
//      11 rope of one head per row (positions before x; interleaved when `format` is 1)
//      12 attention of the last x_rows of `rows` tokens, `option` heads of `cols` reading one: k, v, q; `format` 0 f32, 1 f16
//      13 divergence of rows from those behind them, 14 rows times 0.3, 15 rows and those behind them added up,
//      17 hadamard transform of blocks of `format` (signs behind x),
//      16 the best `option` of each row of scores, shares of kind `format`
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "capi/kvant.h"

namespace {

struct Request {
  int64_t op, format, rows, cols, x_rows, option, bytes;
};

constexpr int32_t kThreads = 2;

// Zeroed and aligned to 64 bytes, as packed weights must be.
class Memory {
 public:
  explicit Memory(int64_t bytes) : size_(size_t(bytes)), data_(static_cast<uint8_t*>(kvant_buffer_alloc(size_ + 1))) {}
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() { kvant_buffer_free(data_, size_ + 1); }
  uint8_t* data() const { return data_; }
  float* floats() const { return reinterpret_cast<float*>(data_); }
  int64_t size() const { return int64_t(size_); }

 private:
  size_t size_;
  uint8_t* data_;
};

void reply(int64_t code, const void* p, int64_t bytes) {
  const int64_t head[2] = {code, bytes};
  fwrite(head, 1, sizeof head, stdout);
  fwrite(p, 1, size_t(bytes), stdout);
  fflush(stdout);
}

void list_isas() {
  std::string text;
  for (int32_t i = 0; i < kvant_isa_count(); ++i) {
    text += std::string(kvant_isa_name(i)) + (kvant_isa_supported(i) ? " 1\n" : " 0\n");
  }
  reply(0, text.data(), int64_t(text.size()));
}

void multiply(const Request& r, const Memory& in) {
  const int64_t x_bytes = r.x_rows * r.cols * 4;
  const Memory weights(r.bytes - x_bytes), y(r.x_rows * r.rows * 4);
  memcpy(weights.data(), in.data() + x_bytes, size_t(weights.size()));
  const bool packed = r.option & 1, floats = r.option & 2;
  const kvant_product product = {weights.data(), weights.size(), int32_t(r.format), packed, r.rows, y.floats(), r.rows};
  const int32_t code = kvant_matmul(in.data(), KVANT_F32, r.x_rows, r.cols, r.cols, &product, 1,
                                    floats ? KVANT_ACTIVATION_F32 : KVANT_ACTIVATION_Q8, kThreads);
  reply(code, y.data(), y.size());
}

// Operations on rows of floats, to rows as long.
void transform(const Request& r, const Memory& in) {
  const int64_t size = r.rows * r.cols;
  const auto number = int32_t(r.format);
  const Memory out(size * 4);
  const float* x = in.floats();
  int32_t code = KVANT_BAD_FORMAT;
  if (r.op == 8) code = kvant_rms_norm(x, r.cols, x + size, 1e-6, r.rows, r.cols, out.floats(), r.cols, kThreads);
  if (r.op == 9) code = kvant_softmax(x, r.cols, 0.5, r.rows, r.cols, out.floats(), r.cols, kThreads);
  if (r.op == 10) {
    code = kvant_activation_mul(number, x, r.cols, x + size, r.cols, r.rows, r.cols, out.floats(), r.cols, kThreads);
  }
  if (r.op == 11) {
    const auto* positions = reinterpret_cast<const int64_t*>(in.data());
    code = kvant_rope(x + 2 * r.rows, r.cols, r.cols, positions, r.rows, 1, int32_t(r.cols), int32_t(r.cols), number == 1,
                      1e6, 1.0, nullptr, out.floats(), r.cols, r.cols, kThreads);
  }
  if (r.op == 14) code = kvant_scale(x, r.cols, 0.3, r.rows, r.cols, out.floats(), r.cols, kThreads);
  if (r.op == 17) {
    code = kvant_hadamard(x, r.cols, r.rows, r.cols, number, x + size, false, out.floats(), r.cols, kThreads);
  }
  if (r.op == 15) {
    memcpy(out.data(), x, size_t(out.size()));
    code = kvant_add(x + size, r.cols, r.rows, r.cols, out.floats(), r.cols, kThreads);
  }
  reply(code, out.data(), out.size());
}

// ids and shares of `option` experts.
void choose(const Request& r, const Memory& in) {
  const Memory out(r.rows * r.option * 12);
  auto* ids = reinterpret_cast<int64_t*>(out.data());
  const int32_t code = kvant_route(in.floats(), r.cols, r.rows, r.cols, r.option, int32_t(r.format), ids,
                                   reinterpret_cast<float*>(ids + r.rows * r.option), kThreads);
  reply(code, out.data(), out.size());
}

void attend(const Request& r, const Memory& in, bool view) {
  const int64_t size = r.rows * r.cols;
  const float *k = in.floats(), *v = view ? nullptr : k + size, *q = k + (view ? size : 2 * size);
  const Memory out(r.x_rows * r.option * r.cols * 4);
  const kvant_kv_side side = {int32_t(r.format), KVANT_SCALE_UNBIASED, int32_t(r.cols), 0, nullptr, nullptr, nullptr};
  const kvant_kv_layer layer = {1, side, side, 70, 0, 0, 0, false, view};
  kvant_cache* cache = nullptr;
  kvant_sequence* sequence = nullptr;
  int32_t code = kvant_cache_new(&layer, 1, 0, &cache);
  if (code == KVANT_OK) code = kvant_sequence_new(cache, &sequence);
  if (code == KVANT_OK) {
    code = kvant_sequence_append(sequence, 0, r.rows, k, KVANT_F32, r.cols, r.cols, v, KVANT_F32, r.cols, r.cols, kThreads,
                                 nullptr);
  }
  if (code == KVANT_OK) {
    const kvant_attention_query query = {q,    r.x_rows, r.option * r.cols, r.cols,  int32_t(r.option), 0.25f,
                                         0.0f, true,     false,             nullptr, out.floats(),      nullptr};
    code = kvant_sequence_attend(sequence, 0, &query, kThreads);
  }
  kvant_sequence_free(sequence);
  kvant_cache_free(cache);
  reply(code, out.data(), out.size());
}

void diverge(const Request& r, const Memory& in) {
  const Memory out(r.rows * int64_t(sizeof(kvant_row_divergence)));
  const int32_t code = kvant_divergence(in.floats(), r.cols, in.floats() + r.rows * r.cols, r.cols, r.rows, r.cols,
                                        reinterpret_cast<kvant_row_divergence*>(out.data()), kThreads);
  reply(code, out.data(), out.size());
}

void serve(const Request& r, const Memory& in) {
  const auto format = int32_t(r.format);
  if (r.op == 0) return list_isas();
  if (r.op == 1) {
    return reply(kvant_isa_use(std::string(reinterpret_cast<const char*>(in.data()), size_t(r.bytes)).c_str()), nullptr, 0);
  }
  if (r.op == 12) return attend(r, in, false);
  if (r.op == 18) return attend(r, in, true);
  if (r.op == 13) return diverge(r, in);
  if (r.op == 16) return choose(r, in);
  if (r.op >= 8) return transform(r, in);
  kvant_format info = {};
  if (kvant_format_info(format, &info) != KVANT_OK) return reply(KVANT_BAD_FORMAT, nullptr, 0);
  const int64_t row_bytes = r.cols / info.block * info.block_bytes;
  if (r.op == 2) {
    const Memory out(r.rows * row_bytes);
    const float* importance = r.option ? in.floats() + r.rows * r.cols : nullptr;
    const int32_t code = kvant_encode(format, in.data(), KVANT_F32, r.rows, r.cols, r.cols, importance, r.rows,
                                      out.data(), out.size(), kThreads, nullptr);
    reply(code, out.data(), out.size());
  } else if (r.op == 3) {
    const Memory out(r.rows * r.cols * 4);
    const int32_t code = kvant_decode(format, in.data(), row_bytes, r.rows, nullptr, r.rows, r.cols, KVANT_F32,
                                      out.data(), kThreads);
    reply(code, out.data(), out.size());
  } else if (r.op == 4) {
    int64_t block = -1;
    const int32_t code = kvant_validate(format, in.data(), row_bytes, r.rows, r.cols, kThreads, &block);
    reply(code, &block, sizeof block);
  } else if (r.op == 5) {
    const Memory out(kvant_packed_bytes(format, r.rows, r.cols));
    reply(kvant_pack(format, in.data(), r.rows, r.cols, out.data(), out.size(), kThreads), out.data(), out.size());
  } else if (r.op == 6) {
    const Memory out(r.rows * row_bytes);
    reply(kvant_unpack(format, in.data(), r.rows, r.cols, out.data(), out.size(), kThreads), out.data(), out.size());
  } else {
    multiply(r, in);
  }
}

}  // namespace

int main() {
  Request r;
  while (fread(&r, 1, sizeof r, stdin) == sizeof r) {
    const Memory in(r.bytes);
    if (!in.data() || fread(in.data(), 1, size_t(r.bytes), stdin) != size_t(r.bytes)) return 1;
    serve(r, in);
  }
  return 0;
}
