// Decoding: a format unpacks a block into codes and group scales, and one loop for all of them
// multiplies. A block whose scale is not finite may give NaN; those are made the one canonical NaN,
// because processors differ in the bits they choose.
#pragma once

#include "kernels/kernels.h"

namespace kvant {

KVANT_INLINE bool is_finite(float x) { return (bits_of(x) & 0x7f800000u) != 0x7f800000u; }

KVANT_INLINE void canonicalize_nan(float* x, int count) {
  for (int i = 0; i < count; ++i) {
    if ((bits_of(x[i]) & 0x7fffffffu) > 0x7f800000u) x[i] = float_of(0x7fc00000u);
  }
}

constexpr int kPrefetchBytes = 4096;

template <class V, class Format, bool kStream>
KVANT_INLINE void decode_run(const uint8_t* src, float* out, int64_t blocks) {
  constexpr int kBlock = Format::kInfo.block, kGroup = Format::kInfo.group;
  for (int64_t b = 0; b < blocks; ++b, src += Format::kInfo.block_bytes, out += kBlock) {
    // A block or more ahead, so that the next codes are there when they are wanted.
    for (int i = 0; i < Format::kInfo.block_bytes; i += 64) __builtin_prefetch(src + kPrefetchBytes + i);
    UnpackedOf<Format> u;
    Format::unpack(src, u);
    if constexpr (Format::kTable != nullptr) V::lookup(Format::kTable, u.codes, kBlock);
    for (int g = 0; g < kBlock / kGroup; ++g) {
      const auto scale = V::splat(u.scale[g]);
      for (int i = g * kGroup; i < (g + 1) * kGroup; i += V::kLanes) {
        auto y = V::load_i8(u.codes + i) * scale;
        if constexpr (Format::kHasMin) y = y - V::splat(u.min[g]);
        if constexpr (kStream) {
          V::stream(out + i, y);
        } else {
          V::store(out + i, y);
        }
      }
    }
    bool finite = is_finite(u.scale[0]);
    if constexpr (Format::kHasMin) finite = finite && is_finite(u.min[0]);
    if (__builtin_expect(!finite, 0)) {
      V::fence();
      canonicalize_nan(out, kBlock);
    }
  }
  if constexpr (kStream) V::fence();
}

template <class V, class Format>
void decode_blocks(const uint8_t* src, float* out, int64_t blocks, bool stream) noexcept {
  if (stream) {
    decode_run<V, Format, true>(src, out, blocks);
  } else {
    decode_run<V, Format, false>(src, out, blocks);
  }
}

template <class V, class Format>
void decode_floats(const uint8_t* src, float* out, int64_t blocks, bool stream) noexcept {
  constexpr int kLanes = V::kLanes, kBytes = Format::kInfo.block_bytes;
  constexpr bool kHalf = Format::kInfo.ggml_type == F16::kInfo.ggml_type;
  const auto widen = [](const uint8_t* p) {
    if constexpr (kBytes == 4) {
      float x[kLanes];
      memcpy(x, p, sizeof x);
      return V::load(x);
    } else {
      uint16_t h[kLanes];
      memcpy(h, p, sizeof h);
      return kHalf ? V::load_f16(h) : V::load_bf16(h);
    }
  };
  int64_t i = 0;
  if (stream) {
    for (; i + kLanes <= blocks; i += kLanes) {
      __builtin_prefetch(src + kBytes * i + kPrefetchBytes);
      V::stream(out + i, widen(src + kBytes * i));
    }
    V::fence();
  } else {
    for (; i + kLanes <= blocks; i += kLanes) V::store(out + i, widen(src + kBytes * i));
  }
  for (; i < blocks; ++i) {
    if constexpr (kBytes == 4) {
      memcpy(out + i, src + 4 * i, 4);
    } else {
      out[i] = kHalf ? f16_to_f32(load_u16(src + 2 * i)) : bf16_to_f32(load_u16(src + 2 * i));
    }
  }
}

template <class V>
void widen_floats(const uint16_t* x, Float type, float* out, int64_t count) noexcept {
  const auto* bytes = reinterpret_cast<const uint8_t*>(x);
  if (type == Float::f16) {
    decode_floats<V, F16>(bytes, out, count, false);
  } else {
    decode_floats<V, BF16>(bytes, out, count, false);
  }
}

}  // namespace kvant
