// Looking for what must not be there: NaN and infinity in weights and scales.
#pragma once

#include "kernels/decode.h"

namespace kvant {

template <class Format>
concept ChecksBlocks = requires(const uint8_t* b) { Format::valid(b); };

template <class V, class Format>
int64_t first_invalid_block(const uint8_t* src, int64_t blocks) noexcept {
  for (int64_t b = 0; b < blocks; ++b, src += Format::kInfo.block_bytes) {
    bool valid = true;
    if constexpr (Format::kInfo.block == 1) {
      float y;
      decode_floats<V, Format>(src, &y, 1, false);
      valid = is_finite(y);
    } else {
      UnpackedOf<Format> u;
      Format::unpack(src, u);
      valid = is_finite(u.scale[0]);
      if constexpr (Format::kHasMin) valid = valid && is_finite(u.min[0]);
      if constexpr (ChecksBlocks<Format>) valid = valid && Format::valid(src);
    }
    if (!valid) return b;
  }
  return -1;
}

// The first element whose magnitude, as an integer, is that of infinity or above. A maximum over a
// run decides whether to look closer.
template <class V, class Bits>
KVANT_INLINE int64_t scan_magnitudes(const Bits* x, Bits infinity, int64_t count) {
  constexpr int64_t kRun = 2048;
  const auto magnitude = [](Bits b) { return Bits(b & (Bits(~Bits(0)) >> 1)); };
  for (int64_t first = 0; first < count; first += kRun) {
    const int64_t last = first + kRun < count ? first + kRun : count;
    Bits largest = 0;
    for (int64_t i = first; i < last; ++i) largest = magnitude(x[i]) > largest ? magnitude(x[i]) : largest;
    if (largest < infinity) continue;
    for (int64_t i = first; i < last; ++i) {
      if (magnitude(x[i]) >= infinity) return i;
    }
  }
  return -1;
}

template <class V>
int64_t find_nonfinite(const void* x, Float type, int64_t count) noexcept {
  if (type == Float::f32) return scan_magnitudes<V>(static_cast<const uint32_t*>(x), 0x7f800000u, count);
  const uint16_t infinity = type == Float::f16 ? 0x7c00 : 0x7f80;
  return scan_magnitudes<V>(static_cast<const uint16_t*>(x), infinity, count);
}

// Lane l of every sum takes elements l, l + 16, ...; then halves are added, repeatedly.
template <class V>
void measure_row(const float* x, const float* y, const float* w, int64_t count, RowError& out) noexcept {
  constexpr int kLanes = 16;
  double ee[kLanes] = {}, xx[kLanes] = {}, yy[kLanes] = {}, xy[kLanes] = {}, wee[kLanes] = {}, wxx[kLanes] = {};
  double max[kLanes] = {};
  const auto add = [&](int lane, double a, double b, double weight) {
    const double e = a - b, magnitude = __builtin_fabs(e);
    ee[lane] += e * e;
    xx[lane] += a * a;
    yy[lane] += b * b;
    xy[lane] += a * b;
    wee[lane] += weight * e * e;
    wxx[lane] += weight * a * a;
    max[lane] = magnitude > max[lane] ? magnitude : max[lane];
  };
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      add(lane, double(x[i + lane]), double(y[i + lane]), w ? double(w[i + lane]) : 1.0);
    }
  }
  for (int lane = 0; i < count; ++i, ++lane) add(lane, double(x[i]), double(y[i]), w ? double(w[i]) : 1.0);
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int lane = 0; lane < half; ++lane) {
      ee[lane] += ee[lane + half];
      xx[lane] += xx[lane + half];
      yy[lane] += yy[lane + half];
      xy[lane] += xy[lane + half];
      wee[lane] += wee[lane + half];
      wxx[lane] += wxx[lane + half];
      max[lane] = max[lane + half] > max[lane] ? max[lane + half] : max[lane];
    }
  }
  out = {ee[0], xx[0], yy[0], xy[0], wee[0], wxx[0], max[0]};
}

}  // namespace kvant
