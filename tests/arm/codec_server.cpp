// Serves the C ABI on stdin and stdout, so that a build for another processor can be tested under
// an emulator. Both ends are little-endian.
//   request   int64 op, format, rows, cols, weighted, bytes; then `bytes` of payload
//   reply     int64 code, bytes; then the result
// ops: 0 list ISAs as "name supported" lines, 1 use the ISA named by the payload,
//      2 encode f32 rows (importance behind them when weighted), 3 decode packed rows to f32,
//      4 first invalid block,
//      5 rms_norm (weight behind x), 6 softmax of half of x, 7 activation `format` of gates times up behind them,
//      8 rope of one head per row (positions before x; interleaved when `format` is 1)
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "capi/kvant.h"

namespace {

struct Request {
  int64_t op, format, rows, cols, weighted, bytes;
};

bool read_all(void* p, size_t bytes) { return fread(p, 1, bytes, stdin) == bytes; }

void reply(int64_t code, const void* p, size_t bytes) {
  const int64_t head[2] = {code, int64_t(bytes)};
  fwrite(head, 1, sizeof head, stdout);
  fwrite(p, 1, bytes, stdout);
  fflush(stdout);
}

void serve(const Request& r, const std::vector<float>& words) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(words.data());
  const auto format = int32_t(r.format);
  kvant_format info = {};
  if (r.op >= 2 && kvant_format_info(format, &info) != KVANT_OK) return reply(KVANT_BAD_FORMAT, nullptr, 0);
  const int64_t row_bytes = r.op >= 2 ? r.cols / info.block * info.block_bytes : 0;
  if (r.op == 0) {
    std::string text;
    for (int32_t i = 0; i < kvant_isa_count(); ++i) {
      text += std::string(kvant_isa_name(i)) + (kvant_isa_supported(i) ? " 1\n" : " 0\n");
    }
    reply(0, text.data(), text.size());
  } else if (r.op == 1) {
    reply(kvant_isa_use(std::string(reinterpret_cast<const char*>(bytes), size_t(r.bytes)).c_str()), nullptr, 0);
  } else if (r.op == 2) {
    std::vector<uint8_t> out(size_t(r.rows * row_bytes));
    const float* importance = r.weighted ? words.data() + r.rows * r.cols : nullptr;
    const int32_t code = kvant_encode(format, words.data(), KVANT_F32, r.rows, r.cols, r.cols, importance,
                                      r.rows, out.data(), int64_t(out.size()), 2, nullptr);
    reply(code, out.data(), out.size());
  } else if (r.op == 3) {
    std::vector<float> out(size_t(r.rows * r.cols));
    const int32_t code = kvant_decode(format, bytes, row_bytes, r.rows, nullptr, r.rows, r.cols, KVANT_F32,
                                      out.data(), 2);
    reply(code, out.data(), out.size() * 4);
  } else if (r.op >= 5) {
    std::vector<float> out(size_t(r.rows * r.cols));
    const float* x = words.data();
    const int64_t size = r.rows * r.cols;
    int32_t code = -1;
    if (r.op == 5) code = kvant_rms_norm(x, r.cols, x + size, 1e-6, r.rows, r.cols, out.data(), r.cols, 2);
    if (r.op == 6) code = kvant_softmax(x, r.cols, 0.5, r.rows, r.cols, out.data(), r.cols, 2);
    if (r.op == 7) {
      code = kvant_activation_mul(format, x, r.cols, x + size, r.cols, r.rows, r.cols, out.data(), r.cols, 2);
    }
    if (r.op == 8) {
      const auto* positions = reinterpret_cast<const int64_t*>(bytes);
      code = kvant_rope(x + 2 * r.rows, r.cols, r.cols, positions, r.rows, 1, int32_t(r.cols), int32_t(r.cols),
                        r.format == 1, 1e6, 1.0, nullptr, out.data(), r.cols, r.cols, 2);
    }
    reply(code, out.data(), out.size() * 4);
  } else {
    int64_t block = -1;
    const int32_t code = kvant_validate(format, bytes, row_bytes, r.rows, r.cols, 2, &block);
    reply(code, &block, sizeof block);
  }
}

}  // namespace

int main() {
  Request r;
  while (read_all(&r, sizeof r)) {
    std::vector<float> words(size_t(r.bytes + 3) / 4);
    if (!read_all(words.data(), size_t(r.bytes))) return 1;
    serve(r, words);
  }
  return 0;
}
