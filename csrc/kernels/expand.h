// Expanding: from a packed chunk to codes and scales that the dot products read (RowTile), or to floats.
#pragma once

#include "kernels/pack.h"

namespace kvant {

// What is subtracted from a code to have its value.
template <class V, class Format>
constexpr int code_offset() {
  return Format::kCodeMax == 255 ? V::kWideOffset : Format::kCodeOffset;
}

// Asks for what an Ahead holds, place after place.
class Asking {
 public:
  KVANT_MEMBER explicit Asking(const Ahead& ahead) : ahead_(ahead) {}
  KVANT_MEMBER void step() { ask(ahead_.step_lines); }
  KVANT_MEMBER void panel() { ask(ahead_.panel_lines); }

 private:
  KVANT_MEMBER void ask(int lines) {
    if (lines == 0) return;
    const uint8_t *from = ahead_.from[place_] + at_, *end = from + 64 * lines;
    for (; from < end; from += 128) {
      __builtin_prefetch(from);
      __builtin_prefetch(from + 64);
    }
    if (++place_ == ahead_.places) {
      place_ = 0;
      at_ += 64 * lines;
    }
  }

  const Ahead& ahead_;
  int place_ = 0;
  int64_t at_ = 0;
};

// shift and steady of a tile. Every format's scales have at most 22 significant bits, so that their
// product with kMagic is exact unless it overflows. fma(scale, kMagic, shift) is +0 where scale * 0 may
// be -0, which does not matter unless a sum of products is -0: for that one must have underflowed, and
// only wide scales are small enough.
template <class V, class Format>
KVANT_INLINE void add_shifts(RowTile& tile, int groups) {
  constexpr int kPer32 = 32 / Format::kInfo.group;
  constexpr int32_t kLeast = 0x2b800000, kMost = 0x71800000;  // the bits of 2^-40 and 2^100
  auto largest = V::splat_i(0), smallest = V::splat_i(kLeast);
  for (int g = 0; g < groups; ++g) {
    for (int lane = 0; lane < kTileRows; lane += V::kLanes) {
      const auto scale = V::load(&tile.scale[g][lane]);
      const auto size = V::bits(scale) & V::splat_i(0x7fffffff);
      largest = V::imax(largest, size);
      if constexpr (requires { Format::kWideScales; }) smallest = V::imin(smallest, size);
      if (g % kPer32 == 0) V::store(&tile.shift[g / kPer32][lane], scale * V::splat(-kMagic));
    }
  }
  const auto least = V::splat_i(kLeast), most = V::splat_i(kMost);
  tile.steady = !V::any(!((V::imax(largest, most) == most) & (smallest == least)));
}

// `blocks` blocks of sixteen rows, packed.
template <class V, class Format>
void expand_chunk(const uint8_t* packed, int blocks, RowTile& tile, const Ahead& ahead) noexcept {
  constexpr int kCodes = plane_bytes<CodePlanes<Format>>(), kScales = plane_bytes<ScalePlanes<Format>>();
  constexpr int kBlock = Format::kInfo.block, kGroups = kBlock / Format::kInfo.group;
  const uint8_t *codes = packed, *scales = packed + int64_t(blocks) * kTileRows * kCodes;
  Asking asking(ahead);
  for (int b = 0; b < blocks; ++b) {
    asking.step();
    for (int lane = 0; lane < kTileRows; lane += V::kLanes) {
      Format::template expand<V>(
          PackedBlock<V>{codes + b * kCodes * kTileRows, scales + b * kScales * kTileRows, lane},
          TileBlock<V>{tile.codes[b * kBlock / 4][lane], &tile.scale[b * kGroups][lane],
                       &tile.neg_min[b * kGroups][lane]});
    }
  }
  if constexpr (V::kSteady) add_shifts<V, Format>(tile, blocks * kGroups);
}

// use(column, lane, weights of so many rows) for all columns of a packed chunk of floats.
template <class V, class Format, class Use>
KVANT_INLINE void each_float(const uint8_t* packed, int columns, Use&& use) {
  constexpr int kBytes = Format::kInfo.block_bytes, kPerWord = 4 / kBytes;
  constexpr bool kHalf = Format::kInfo.ggml_type == F16::kInfo.ggml_type;
  const int words = columns / kPerWord;
  for (int w = 0; w < words; ++w) {
    for (int lane = 0; lane < kTileRows; lane += V::kLanes) {
      const auto word = V::load_i(reinterpret_cast<const int32_t*>(packed + 64 * w + 4 * lane));
      const int k = w * kPerWord;
      if constexpr (kBytes == 4) {
        use(k, lane, V::from_bits(word));
      } else if constexpr (kHalf) {
        use(k, lane, V::low_half(word));
        use(k + 1, lane, V::low_half(word.template shr<16>()));
      } else {
        use(k, lane, V::from_bits(word.template shl<16>()));
        use(k + 1, lane, V::from_bits(word & V::splat_i(int32_t(0xffff0000u))));
      }
    }
  }
  if (words * kPerWord == columns) return;
  alignas(64) float last[kTileRows];
  for (int r = 0; r < kTileRows; ++r) {
    const uint16_t half = load_u16(packed + 64 * words + 2 * r);
    last[r] = kHalf ? f16_to_f32(half) : bf16_to_f32(half);
  }
  for (int lane = 0; lane < kTileRows; lane += V::kLanes) use(columns - 1, lane, V::load(last + lane));
}

// Decoded weights, out[column][row]: scale * code, and the minimum taken off, each rounded.
template <class V, class Format>
void expand_floats(const uint8_t* packed, int blocks, RowTile& tile, float* out) noexcept {
  constexpr int kLanes = V::kLanes;
  if constexpr (Format::kInfo.block == 1) {
    each_float<V, Format>(packed, blocks, [&](int k, int lane, auto w) KVANT_LAMBDA {
      V::store(out + k * kTileRows + lane, w);
    });
  } else {
    expand_chunk<V, Format>(packed, blocks, tile, Ahead{});
    constexpr int kGroup = Format::kInfo.group;
    constexpr bool kSigned = Format::kCodeMax == 255 && V::kWideOffset == 0;
    for (int k = 0; k < blocks * Format::kInfo.block; k += 4) {
      for (int lane = 0; lane < kTileRows; lane += kLanes) {
        const auto scale = V::load(&tile.scale[k / kGroup][lane]);
        each_byte<V>(V::load_i(reinterpret_cast<const int32_t*>(tile.codes[k / 4][lane])),
                     [&](int j, auto code) KVANT_LAMBDA {
                       const auto sign = V::splat_i(kSigned ? 128 : 0);
                       auto y = scale * V::to_f32((code ^ sign) - sign - V::splat_i(code_offset<V, Format>()));
                       if constexpr (Format::kHasMin) y = y + V::load(&tile.neg_min[k / kGroup][lane]);
                       V::store(out + (k + j) * kTileRows + lane, y);
                     });
      }
    }
  }
}

}  // namespace kvant
