#include "kv/rows.h"

#include <algorithm>
#include <cstring>

namespace kvant {
namespace {

// The index of a format of ggml's among those of weights, or -1.
int format_of(int32_t ggml_type) {
  for (int f = 0; f < kFormatCount; ++f) {
    if (kFormats.row[f].ggml_type == ggml_type) return f;
  }
  return -1;
}

bool is_finite_half(uint16_t half) { return (half & 0x7c00) != 0x7c00; }

}  // namespace

void KvCoder::place(Carver& carver, int64_t rows) {
  x_ = carver.take<float>(rows * width_);
  if (!coded()) return;
  rows_.codes = carver.take<uint8_t>(rows * width_);
  rows_.scales = carver.take<uint16_t>(rows * blocks());
  rows_.mins = carver.take<uint16_t>(rows * blocks());
  bytes_ = carver.take<uint8_t>(rows * kv_row_bytes(layer_.info(side_), dim_));
}

void KvCoder::copy(const KvInput& in, int head, int64_t token, float* to) const {
  const int64_t at = token * in.token_stride + head * in.head_stride;
  if (in.type == Float::f32) {
    memcpy(to, static_cast<const float*>(in.x) + at, size_t(dim_) * 4);
  } else {
    kernels_.codec->widen(static_cast<const uint16_t*>(in.x) + at, in.type, to, dim_);
  }
}

void KvCoder::rotate(const float* from, int64_t stride, int64_t rows, float* to, bool inverse) const {
  const KvTransform& transform = layer_.transform[side_];
  const float* signs = transform.signs.empty() ? nullptr : transform.signs.data();
  kernels_.ops->hadamard({{from, stride, to, width_, rows, dim_}, transform.rotate, signs, inverse});
}

int64_t KvCoder::gather(const KvInput& in, int head, int64_t from, int64_t until, int64_t r) {
  const KvTransform& transform = layer_.transform[side_];
  float* to = x_ + r * width_;
  const int64_t rows = until - from;
  // What is only rotated needs no copy before.
  const bool copied = in.type != Float::f32 || !transform.center.empty() || !transform.shrink.empty() || !transform.rotate;
  const float* source = static_cast<const float*>(in.x) + from * in.token_stride + head * in.head_stride;
  for (int64_t i = 0; i < rows; ++i) {
    float* row = to + i * width_;
    if (copied) copy(in, head, from + i, row);
    const float* given = copied ? row : source + i * in.token_stride;
    if (kernels_.codec->first_nonfinite(given, Float::f32, dim_) >= 0) return from + i;
    std::fill(row + dim_, row + width_, 0.0f);
    for (int d = 0; d < dim_ && !transform.center.empty(); ++d) row[d] -= transform.center[size_t(head * dim_ + d)];
    for (int d = 0; d < dim_ && !transform.shrink.empty(); ++d) row[d] *= transform.shrink[size_t(head * dim_ + d)];
  }
  if (transform.rotate) rotate(copied ? to : source, copied ? width_ : in.token_stride, rows, to, false);
  return -1;
}

int64_t KvCoder::encode(int64_t rows, int64_t tokens) {
  // A transform may overflow.
  if (!coded()) return first_refused(rows, tokens);
  const KvCodecInfo& info = layer_.info(side_);
  for (int64_t first = 0; first < rows; first += kMaxEncodeRows) {
    const int count = int(std::min<int64_t>(rows - first, kMaxEncodeRows));
    const float* x = x_ + first * width_;
    if (codec().encode) {
      codec().encode(x, count, dim_, layer_.rule[side_], from(first));
      continue;
    }
    const int64_t row_bytes = kv_row_bytes(info, dim_);
    const EncodeJob job = {x, width_, nullptr, bytes_, row_bytes, count, width_};
    const int format = codec().encode_blocks ? -1 : format_of(info.ggml_type);
    // What overflowed has no finite scale.
    memset(bytes_, 0xff, size_t(count * row_bytes));
    (void)(codec().encode_blocks ? codec().encode_blocks(job) : kernels_.codec->encode[format](job));
    codec().read(bytes_, count, blocks(), from(first));
  }
  return first_refused(rows, tokens);
}

bool KvCoder::refused(int64_t r) const {
  if (!coded()) return kernels_.codec->first_nonfinite(x_ + r * width_, Float::f32, width_) >= 0;
  const KvCodecInfo& info = layer_.info(side_);
  const int count = info.row_scale ? 1 : blocks();
  for (int64_t i = r * blocks(); i < r * blocks() + count; ++i) {
    if (!is_finite_half(rows_.scales[i]) || (info.positive() && rows_.scales[i] > 0x8000)) return true;
    if (info.has_min && !is_finite_half(rows_.mins[i])) return true;
  }
  return false;
}

int64_t KvCoder::first_refused(int64_t rows, int64_t tokens) const {
  for (int64_t token = 0; token < tokens; ++token) {
    for (int64_t r = token; r < rows; r += tokens) {
      if (refused(r)) return r;
    }
  }
  return -1;
}

void KvCoder::read(const uint8_t* bytes, int64_t r) {
  if (coded()) return codec().read(bytes, 1, blocks(), from(r));
  float* x = x_ + r * width_;
  if (layer_.codec[side_] == KvCodec::f32) {
    memcpy(x, bytes, size_t(dim_) * 4);
  } else {
    uint16_t halves[kMostKvDim];
    memcpy(halves, bytes, size_t(dim_) * 2);
    kernels_.codec->widen(halves, Float(int32_t(layer_.codec[side_])), x, dim_);
  }
  std::fill(x + dim_, x + width_, 0.0f);
}

bool KvCoder::put(int64_t r, int64_t rows, uint8_t* side, int token) const {
  if (coded()) {
    codec().put[side_](from(r), int(rows), blocks(), side, token);
    return true;
  }
  if (by_channel()) return true;
  const AttendKernels& attend = *kernels_.attend;
  const auto put = (side_ ? attend.put_values : attend.put_keys)[int(layer_.codec[side_])];
  return put(x_ + r * width_, width_, int(rows), dim_, side, token);
}

bool KvCoder::put_exact(int64_t r, int64_t rows, uint8_t* side, int token) const {
  const AttendKernels& attend = *kernels_.attend;
  const auto put = (side_ ? attend.put_values : attend.put_keys)[int(KvCodec::f16)];
  return put(x_ + r * width_, width_, int(rows), dim_, side, token);
}

void KvCoder::put_groups(const uint8_t* exact, uint8_t* side, int begin, int end) const {
  if (!by_channel()) return;
  const int group = layer_.key_group();
  for (int at = begin / group * group; at + group <= end; at += group) codec().code_keys(exact, at, dim_, side);
}

void KvCoder::take(const uint8_t* side, int token, int64_t rows, int64_t r) {
  if (coded()) return codec().take[side_](side, token, int(rows), blocks(), from(r));
  if (by_channel()) return codec().decode_keys(side, token, int(rows), dim_, x_ + r * width_, width_);
  const AttendKernels& attend = *kernels_.attend;
  const auto take = (side_ ? attend.take_values : attend.take_keys)[int(layer_.codec[side_])];
  take(side, token, int(rows), dim_, x_ + r * width_, width_);
}

void KvCoder::take_exact(const uint8_t* side, int token, int64_t rows, int64_t r) {
  const AttendKernels& attend = *kernels_.attend;
  const auto take = (side_ ? attend.take_values : attend.take_keys)[int(KvCodec::f16)];
  take(side, token, int(rows), dim_, x_ + r * width_, width_);
}

void KvCoder::write(int64_t rows, uint8_t* bytes) const {
  if (coded()) return codec().write(rows_, int(rows), blocks(), bytes);
  const Float type = Float(int32_t(layer_.codec[side_]));
  for (int64_t r = 0; r < rows; ++r, bytes += kv_row_bytes(layer_.info(side_), dim_)) {
    if (type == Float::f32) memcpy(bytes, x_ + r * width_, size_t(dim_) * 4);
    else kernels_.codec->narrow(x_ + r * width_, type, reinterpret_cast<uint16_t*>(bytes), dim_);
  }
}

void KvCoder::decode(int64_t rows, int64_t r) {
  if (!coded()) return;
  const KvCodecInfo& info = layer_.info(side_);
  for (int64_t i = r * blocks(); i < (r + rows) * blocks(); ++i) {
    const float scale = f16_to_f32(rows_.scales[i]), min = info.has_min ? f16_to_f32(rows_.mins[i]) : 0.0f;
    for (int64_t e = i * kKvBlock; e < (i + 1) * kKvBlock; ++e) {
      const int code = rows_.codes[e], value = info.table ? info.table[code] : code - info.offset;
      x_[e] = float(value) * scale;
      if (info.has_min) x_[e] += min;
    }
  }
}

void KvCoder::untransform(int head, int64_t rows) {
  const KvTransform& transform = layer_.transform[side_];
  if (transform.rotate) rotate(x_, width_, rows, x_, true);
  for (int64_t r = 0; r < rows; ++r) {
    float* x = x_ + r * width_;
    for (int d = 0; d < dim_; ++d) {
      const int64_t at = int64_t(head) * dim_ + d;
      if (!transform.equalize.empty()) x[d] *= transform.equalize[size_t(at)];
      if (!transform.center.empty()) x[d] += transform.center[size_t(at)];
    }
  }
}

}  // namespace kvant
