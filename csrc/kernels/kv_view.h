// Pages of keys whose first elements are the values, too. What `mix` wants of values is made of the keys: a step of keys
// is sixteen tokens by four elements, of values sixteen elements by four tokens.
#pragma once

#include "kernels/kv_floats.h"
#include "kernels/kv_page.h"

namespace kvant {

// Codes of values (as expand_values gives them) of the first `value_blocks` blocks. codes: what expand_keys gave, or
// the page itself where keys lie as they are multiplied.
template <class V, class C>
void turn_codes(const uint8_t* codes, const uint8_t* side, int blocks, int value_blocks, uint8_t* out,
                NextPage& next) noexcept {
  constexpr int kHalf = kBlockCodes / 2;
  constexpr uint8_t kLess = uint8_t(kWholeRange<V, C> ? V::kWideOffset : 0);
  const KvScales<C> scales(side, blocks);
  for (int tile = 0; tile < kTiles; ++tile, codes += int64_t(blocks) * kBlockCodes) {
    for (int b = 0; b < value_blocks; ++b) {
      ask(next, 5);
      alignas(16) uint8_t bits[kTileTokens] = {};
      if constexpr (kSignedScale<C>) {
        for (int lane = 0; lane < kTileTokens; lane += V::kLanes) {
          V::store_bytes(bits + lane, turn_of<V, C>(scales.scale(b, kTileTokens * tile + lane)));
        }
      }
      for (int half = 0; half < 2; ++half, out += kHalf) {
        const uint8_t* from = codes + b * kBlockCodes + half * kHalf;
        if constexpr (V::kLanes == 1) {
          for (int i = 0; i < kHalf; ++i) {
            const int token = i / kStepBytes * 4 + i % 4, element = i % kStepBytes / 4;
            const uint8_t code = uint8_t(from[element / 4 * kStepBytes + 4 * token + element % 4] - kLess);
            out[i] = uint8_t(code ^ bits[token]);
          }
        } else {
          typename V::I code[4];
          for (int s = 0; s < 4; ++s) code[s] = V::load_i(reinterpret_cast<const int32_t*>(from + kStepBytes * s));
          V::turn(code);
          for (int quad = 0; quad < 4; ++quad) {
            if constexpr (kLess != 0) code[quad] = code[quad] ^ splat_bytes<V>(kLess);
            if constexpr (kSignedScale<C>) code[quad] = code[quad] ^ V::splat_i(int32_t(load_u32(bits + 4 * quad)));
            V::store_i(reinterpret_cast<int32_t*>(out + kStepBytes * quad), code[quad]);
          }
        }
      }
    }
  }
}

// Values as f32 of a page of keys that are floats: [sixteen of them][token][16].
KVANT_INLINE constexpr Columns turned_columns(int width) { return {width, 16, 16 * kPageTokens}; }

template <class V, class T>
void turn_floats(const T* keys, int dim, int value_dim, float* out) noexcept {
  alignas(64) float rows[16][kPageTokens];
  for (int first = 0; first < value_dim; first += 16, out += 16 * kPageTokens) {
    for (int l = 0; l < 16; ++l) {
      const bool there = first + l < dim;
      for (int j = 0; j < kPageTokens; j += V::kLanes) {
        V::store(rows[l] + j, there ? load_float<V>(keys + (first + l) * kPageTokens + j) : V::splat(0.0f));
      }
    }
    if constexpr (V::kLanes == 16) {
      V::transpose([&](int l) KVANT_LAMBDA { return rows[l]; }, kPageTokens, out);
    } else {
      for (int i = 0; i < 16 * kPageTokens; ++i) out[i] = rows[i % 16][i / 16];
    }
  }
}

}  // namespace kvant
