// Products with a page of quantized keys and of quantized values, in integers.
//
// Scores are those of multiply.h: q in eight bits by blocks of 32, for every block t = scale * (sum of products) and
// with minima t = fma(min, sum of q, t), score = fma(d, t, score). Then (score + bias) * scale of the softmax.
//
// Weights p of a page, with a block's scales s of values: w_j = p_j |s_j| become u_j = w_j * (255 / max w) rounded,
// and sums += (sum of u_j * code_j) * (max w / 255). Where there are minima codes are taken from the middle of their
// range, and the values there come after, as one sum of p_j * (min_j + middle * s_j). Finely: u_j is rounded down, and
// what it leaves of w_j, max(w_j - u_j * (max w / 255), 0), is taken the same way once more.
#pragma once

#include "kernels/activations.h"
#include "kernels/groups.h"
#include "kernels/kv_page.h"
#include "kernels/sixteen.h"

namespace kvant {

// Tiles of keys that are multiplied with so many rows at once.
template <class V>
constexpr int score_tiles(int rows) {
  return V::kMaxTiles == 1 ? 1 : rows <= 2 ? 4 : 2;
}

// sum[t][c] = start[c] + products of one block of keys of kT tiles and of queries: of codes a byte each in memory, or of
// a page's planes.
template <class V, class C, bool kPlanes, int kT, int kRows>
KVANT_INLINE void score_block(const uint8_t* block, int64_t stride, int lane, const uint8_t* q, const int32_t* start,
                              typename V::I (&sum)[kT][kRows]) {
  if constexpr (kPlanes) {
    KVANT_UNROLL for (int c = 0; c < kRows; ++c) {
      KVANT_UNROLL for (int t = 0; t < kT; ++t) sum[t][c] = V::splat_i(start[c]);
    }
    each_step<V, C, kT>(block, stride, lane, [&](auto s, typename V::I (&code)[kT]) KVANT_LAMBDA {
      KVANT_UNROLL for (int t = 0; t < kT; ++t) code[t] = key_code<V, C>(code[t]);
      KVANT_UNROLL for (int c = 0; c < kRows; ++c) {
        const auto four = V::splat_i(int32_t(load_u32(q + 32 * c + 4 * s.value)));
        KVANT_UNROLL for (int t = 0; t < kT; ++t) {
          sum[t][c] = V::template dot4<key_class<V, C>()>(sum[t][c], code[t], four);
        }
      }
    });
  } else {
    V::template dot<8, key_class<V, C>()>(block, stride, q, start, sum);
  }
}

template <class V, class C, bool kPlanes, int kRows>
KVANT_INLINE void score_rows(const AttendJob& job, const uint8_t* codes, const uint8_t* side, int row, float* scores,
                             NextPage& next) {
  using F = typename V::F;
  using I = typename V::I;
  constexpr int kT = score_tiles<V>(kRows), kRecord = kRows * record_bytes(1, C::kHasMin);
  const int blocks = kv_blocks(job.dim);
  constexpr int kBytes = kPlanes ? KvPlanes<C>::kBytes : kBlockCodes;
  const int64_t stride = int64_t(blocks) * kBytes;  // from tile to tile
  const KvScales<C> scales(side, blocks);
  const uint8_t* records = job.records + int64_t(row) * blocks * record_bytes(1, C::kHasMin);
  const F factor = V::splat(job.scale);
  for (int tile = 0; tile < kTiles; tile += kT) {
    for (int lane = 0; lane < kTileTokens; lane += V::kLanes) {
      F total[kT][kRows];
      KVANT_UNROLL for (int t = 0; t < kT; ++t) {
        KVANT_UNROLL for (int c = 0; c < kRows; ++c) total[t][c] = V::splat(0.0f);
      }
      const uint8_t *record = records, *block = codes + tile * stride + 4 * lane;
      for (int b = 0; b < blocks; ++b, record += kRecord, block += kBytes) {
        ask(next, kT * (kRows + (kPlanes ? 2 : 0)) + 3);
        const auto* d = reinterpret_cast<const float*>(record + 32 * kRows);
        const auto* start = reinterpret_cast<const int32_t*>(d + kRows);
        const auto* qsum = reinterpret_cast<const float*>(start + kRows);
        I sum[kT][kRows];
        score_block<V, C, kPlanes>(block, stride, lane, record, start, sum);
        F scale[kT], min[kT];
        KVANT_UNROLL for (int t = 0; t < kT; ++t) {
          scale[t] = V::load_f16(scales.scale(b, (tile + t) * kTileTokens + lane));
          if constexpr (C::kHasMin) min[t] = V::load_f16(scales.min(b, (tile + t) * kTileTokens + lane));
        }
        KVANT_UNROLL for (int c = 0; c < kRows; ++c) {
          const F size = V::splat(d[c]);
          KVANT_UNROLL for (int t = 0; t < kT; ++t) {
            F y = scale[t] * sum_to_float<V>(sum[t][c]);
            if constexpr (C::kHasMin) y = V::fma(min[t], V::splat(qsum[c]), y);
            total[t][c] = V::fma(size, y, total[t][c]);
          }
        }
      }
      KVANT_UNROLL for (int c = 0; c < kRows; ++c) {
        const F bias = V::splat(job.bias[row + c]);
        KVANT_UNROLL for (int t = 0; t < kT; ++t) {
          V::store(scores + c * kPageTokens + (tile + t) * kTileTokens + lane, (total[t][c] + bias) * factor);
        }
      }
    }
  }
}

// Groups of rows for which taking codes out of planes again costs less than laying them out in memory: nibbles are
// quickly had.
template <class C>
constexpr int kCheapGroups = C::kBits == 4 ? 2 : 1;

// Rows up to which codes of keys are not laid out in memory.
template <class V, class C>
constexpr int kPlaneScores = kKeysLie<V, C> ? kMostTaskRows : V::kStreams ? kCheapGroups<C> * V::kMaxColumns[0] : 0;

// codes: null where the page serves as it is.
template <class V, class C>
void score_codes(const AttendJob& job, const uint8_t* codes, const uint8_t* side, int row, int rows, float* scores,
                 NextPage& next) noexcept {
  of_count<V::kMaxColumns[0]>(rows, [&](auto n) KVANT_LAMBDA {
    constexpr int kRows = decltype(n)::value;
    if constexpr (kKeysLie<V, C>) score_rows<V, C, false, kRows>(job, side, side, row, scores, next);
    else if (codes) score_rows<V, C, false, kRows>(job, codes, side, row, scores, next);
    else if constexpr (kPlaneScores<V, C> > 0) score_rows<V, C, true, kRows>(job, side, side, row, scores, next);
  });
}

// Rows whose weighted values are summed at once.
template <class V>
constexpr int kMixRows = V::kLanes == 1 ? 1 : V::Native::kParts == 1 ? 4 : 2;
constexpr int kMostMixRows = 8;

// Where the bytes of lane `lane` and on begin among those of a page, in the order of ByteWeights.
constexpr int four_bytes(int lane) { return 16 * (lane / 4) + lane % 4; }

// Weights in eight bits, of every row and block: of four tokens of a tile and then of the next tile's, then of the next
// four. And what one of them is worth.
struct ByteWeights {
  alignas(64) uint8_t of[kMostMixRows * kMostKvBlocks][kPageTokens];
  alignas(64) float most[kMostMixRows * kMostKvBlocks][16];   // then sums of weights times offsets
  alignas(64) int32_t start[kMostMixRows * kMostKvBlocks + 16];  // those sums, negated
  alignas(64) uint8_t turn[kMostKvBlocks][kPageTokens];          // as `of`
  alignas(64) float unit[kMostMixRows * kMostKvBlocks + 16];
  alignas(64) float factor[kMostMixRows * kMostKvBlocks + 16];
  float min[kMostMixRows * kMostKvBlocks];
};

// Of weights in sixteen bits the upper eight and the lower, or all there is.
enum class Digit { only, upper, lower };

// What the upper digits of weights were.
struct UpperDigits {
  alignas(64) float unit[kMostMixRows * kMostKvBlocks + 16];
  alignas(64) float factor[kMostMixRows * kMostKvBlocks + 16];
};

template <class V, class C, Digit kDigit>
KVANT_INLINE void weigh_values(const float* p, const KvScales<C>& scales, int blocks, int rows, ByteWeights& weights,
                               const UpperDigits* upper, NextPage& next) {
  using F = typename V::F;
  constexpr int kLanes = V::kLanes, kVectors = kPageTokens / kLanes;
  const int count = rows * blocks;
  const auto size = [&](int b, F (&out)[kVectors]) KVANT_LAMBDA {
    for (int i = 0; i < kVectors; ++i) {
      out[i] = V::load_f16(scales.scale(b, i * kLanes));
      if constexpr (kSignedScale<C>) out[i] = V::abs(out[i]);
    }
  };
  const auto weight = [&](const float* own, F factor, int at) KVANT_LAMBDA {
    const F whole = V::load(own) * factor;
    if constexpr (kDigit != Digit::lower) return whole;
    const F taken = V::to_f32(V::trunc(whole * V::splat(upper->factor[at]))) * V::splat(upper->unit[at]);
    return V::max(whole - taken, V::splat(0.0f));
  };
  for (int b = 0; b < blocks; ++b) {
    ask(next, 3 * rows + 3);
    F scale[kVectors];
    size(b, scale);
    for (int r = 0; r < rows; ++r) {
      const float* own = p + r * kPageTokens;
      const int at = r * blocks + b;
      F most = weight(own, scale[0], at);
      for (int i = 1; i < kVectors; ++i) most = V::max(weight(own + i * kLanes, scale[i], at), most);
      V::store(weights.most[at], most);
    }
  }
  for (int first = 0; first < count; first += kLanes) {
    typename V::I largest[kLanes];
    for (int l = 0; l < kLanes; ++l) {
      // Of numbers that are not negative the bits are ordered as they are.
      largest[l] = V::bits(V::load(weights.most[first + l < count ? first + l : count - 1]));
    }
    const F most = V::from_bits(V::largest_of_each(largest));
    const auto zero = V::splat(0.0f), top = V::splat(255.0f);
    const auto small = most < V::splat(kSmallestBlock);
    V::store(weights.factor + first, V::select(small, zero, top / most));
    V::store(weights.unit + first, V::select(small, zero, most / top));
  }
  const F magic = V::splat(kMagic);
  for (int b = 0; b < blocks; ++b) {
    alignas(64) uint8_t offset[kPageTokens];
    if constexpr (kHasOffset<C>) {
      for (int lane = 0; lane < 16; lane += kLanes) {
        typename V::I turn[kTiles], taken[kTiles];
        KVANT_UNROLL for (int t = 0; t < kTiles; ++t) {
          taken[t] = V::splat_i(value_offset<C>());
          if constexpr (!kSignedScale<C>) continue;
          turn[t] = turn_of<V, C>(scales.scale(b, t * kTileTokens + lane));
          taken[t] = taken[t] - (turn[t] & V::splat_i(1));
        }
        V::store_four_bytes(offset + four_bytes(lane), taken);
        if constexpr (kSignedScale<C>) V::store_four_bytes(weights.turn[b] + four_bytes(lane), turn);
      }
    }
    F scale[kVectors], middle[kVectors];
    size(b, scale);
    if constexpr (C::kHasMin && kDigit != Digit::lower) {
      for (int i = 0; i < kVectors; ++i) {
        middle[i] = scale[i] * V::splat(float(value_offset<C>())) + V::load_f16(scales.min(b, i * kLanes));
      }
    }
    for (int r = 0; r < rows; ++r) {
      const float* own = p + r * kPageTokens;
      const int at = r * blocks + b;
      const F factor = V::splat(weights.factor[at]);
      for (int lane = 0; lane < 16; lane += kLanes) {
        typename V::I tile[kTiles];
        KVANT_UNROLL for (int t = 0; t < kTiles; ++t) {
          const int first = t * kTileTokens + lane;
          const F scaled = weight(own + first, scale[first / kLanes], at) * factor;
          tile[t] = kDigit == Digit::upper ? V::trunc(scaled) : V::bits(scaled + magic);
        }
        V::store_four_bytes(weights.of[at] + four_bytes(lane), tile);
      }
      if constexpr (kHasOffset<C>) {
        auto sum = V::splat_i(0);
        for (int word = 0; word < 16; word += kLanes) {
          const auto at_word = [&](const uint8_t* bytes) { return V::load_i(reinterpret_cast<const int32_t*>(bytes) + word); };
          sum = V::dot_bytes(sum, at_word(weights.of[at]), at_word(offset));
        }
        V::store_i(reinterpret_cast<int32_t*>(weights.most[at]), sum);
      }
      if constexpr (C::kHasMin && kDigit != Digit::lower) {
        Sixteen<V> sum = splat16<V>(0.0f);
        for (int i = 0; i < kVectors; ++i) {
          auto& part = sum.v[i % Sixteen<V>::kPieces];
          part = part + V::load(own + i * kLanes) * middle[i];
        }
        weights.min[at] = sum16<V>(sum);
      }
    }
  }
}

// Sums of a row and block begin with what the offset of its codes takes away.
template <class V>
KVANT_INLINE void start_sums(int count, ByteWeights& weights) {
  for (int first = 0; first < count; first += V::kLanes) {
    typename V::I parts[V::kLanes];
    for (int l = 0; l < V::kLanes; ++l) {
      parts[l] = V::load_i(reinterpret_cast<const int32_t*>(weights.most[first + l < count ? first + l : count - 1]));
    }
    V::store_i(weights.start + first, V::splat_i(0) - V::sum_of_each(parts));
  }
}

// Not inline: what takes weights apart in two calls it once for each part.
template <class V, class C, bool kPlanes, bool kMin, int kRows>
__attribute__((noinline)) void mix_rows(const uint8_t* codes, const ByteWeights& weights, int row, int blocks,
                                        float* sums, int64_t stride, NextPage& next) noexcept {
  using F = typename V::F;
  using I = typename V::I;
  constexpr int kBytes = kPlanes ? KvPlanes<C>::kBytes : kBlockCodes;
  for (int b = 0; b < blocks; ++b) {
    for (int lane = 0; lane < 16; lane += V::kLanes) {
      I sum[kRows][2];
      KVANT_UNROLL for (int r = 0; r < kRows; ++r) {
        const I start = V::splat_i(kHasOffset<C> ? weights.start[(row + r) * blocks + b] : 0);
        KVANT_UNROLL for (int h = 0; h < 2; ++h) sum[r][h] = start;
      }
      const uint8_t* block = codes + b * kBytes + (kPlanes ? 0 : 4 * lane);
      for (int tile = 0; tile < kTiles; ++tile, block += int64_t(blocks) * kBytes) {
        ask(next, kRows + (kPlanes ? 3 : 1));
        const uint8_t* four = weights.of[row * blocks + b] + 4 * tile;
        const auto add = [&](int quad, int h, I code) KVANT_LAMBDA {
          KVANT_UNROLL for (int r = 0; r < kRows; ++r) {
            const I weight = V::splat_i(int32_t(load_u32(four + int64_t(r) * blocks * kPageTokens + 16 * quad)));
            sum[r][h] = V::dot_bytes(sum[r][h], weight, code);
          }
        };
        if constexpr (kPlanes) {
          const uint8_t* turn = weights.turn[b] + 4 * tile;
          each_step<V, C, 1>(block, 0, lane, [&](auto s, I (&code)[1]) KVANT_LAMBDA {
            constexpr int kStep = decltype(s)::value;
            add(kStep % 4, kStep / 4, value_code<V, C>(code[0], turn + 16 * (kStep % 4)));
          });
        } else {
          KVANT_UNROLL for (int quad = 0; quad < 4; ++quad) {
            KVANT_UNROLL for (int h = 0; h < 2; ++h) {
              add(quad, h, V::load_i(reinterpret_cast<const int32_t*>(block + kStepBytes * (quad + 4 * h))));
            }
          }
        }
      }
      KVANT_UNROLL for (int r = 0; r < kRows; ++r) {
        const int i = (row + r) * blocks + b;
        const F unit = V::splat(weights.unit[i]);
        KVANT_UNROLL for (int h = 0; h < 2; ++h) {
          float* to = sums + r * stride + kKvBlock * b + 16 * h + lane;
          F y = V::fma(V::to_f32(sum[r][h]), unit, V::load(to));
          if constexpr (kMin) y = y + V::splat(weights.min[i]);
          V::store(to, y);
        }
      }
    }
  }
}

// Rows up to which codes of values are not laid out in memory.
template <class V, class C>
constexpr int kPlaneMixes = kValuesLie<C> ? kMostTaskRows : kCheapGroups<C> * kMixRows<V>;

template <class V, class C, Digit kDigit>
KVANT_INLINE void mix_digit(const uint8_t* codes, const uint8_t* side, int side_blocks, int value_dim, int rows,
                            const float* p, float* sums, int64_t stride, UpperDigits* upper, NextPage& next) {
  constexpr bool kMin = C::kHasMin && kDigit != Digit::lower;
  const int blocks = kv_blocks(value_dim);
  ByteWeights weights;
  weigh_values<V, C, kDigit>(p, KvScales<C>(side, side_blocks), blocks, rows, weights, upper, next);
  if constexpr (kHasOffset<C>) start_sums<V>(rows * blocks, weights);
  in_groups<kMixRows<V>>(rows, [&](int row, auto n) KVANT_LAMBDA {
    constexpr int kRows = decltype(n)::value;
    float* to = sums + row * stride;
    if (codes || kValuesLie<C>) {
      mix_rows<V, C, false, kMin, kRows>(codes ? codes : side, weights, row, blocks, to, stride, next);
    } else {
      mix_rows<V, C, !kValuesLie<C>, kMin, kRows>(side, weights, row, blocks, to, stride, next);
    }
  });
  if constexpr (kDigit == Digit::upper) {
    memcpy(upper->unit, weights.unit, sizeof upper->unit);
    memcpy(upper->factor, weights.factor, sizeof upper->factor);
  }
}

template <class V, class C>
void mix_codes(const uint8_t* codes, const uint8_t* side, int side_blocks, int value_dim, int rows, const float* p,
               float* sums, int64_t stride, NextPage& next) noexcept {
  mix_digit<V, C, Digit::only>(codes, side, side_blocks, value_dim, rows, p, sums, stride, nullptr, next);
}

template <class V, class C>
void mix_codes_finely(const uint8_t* codes, const uint8_t* side, int side_blocks, int value_dim, int rows,
                      const float* p, float* sums, int64_t stride, NextPage& next) noexcept {
  UpperDigits upper;
  mix_digit<V, C, Digit::upper>(codes, side, side_blocks, value_dim, rows, p, sums, stride, &upper, next);
  mix_digit<V, C, Digit::lower>(codes, side, side_blocks, value_dim, rows, p, sums, stride, &upper, next);
}

}  // namespace kvant
