// Encoding: sixteen blocks at a time are transposed so that each lane holds one block, then the
// format searches all of them at once. A short last batch repeats its last block.
#pragma once

#include "kernels/kernels.h"

namespace kvant {

template <class Format>
concept WeighsByRow = requires { Format::kRowMeanSquare; };

// Sum of squares of each row divided by its length, one row per lane, in order of the columns.
template <class V>
KVANT_INLINE void row_mean_squares(const EncodeJob& job, float* out) {
  alignas(64) float tile[16 * 16];
  for (int first = 0; first < job.rows; first += kLanes) {
    const float* rows[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
      const int row = first + lane < job.rows ? first + lane : job.rows - 1;
      rows[lane] = job.x + row * job.row_stride;
    }
    auto sum = V::splat(0.0f);
    for (int64_t col = 0; col < job.cols; col += 16) {
      V::transpose(rows, 16, tile);
      for (int i = 0; i < 16; ++i) sum = sum + V::load(tile + 16 * i) * V::load(tile + 16 * i);
      for (int lane = 0; lane < kLanes; ++lane) rows[lane] += 16;
    }
    V::store(out + first, sum / V::splat(float(job.cols)));
  }
}

template <class V, class Format>
void encode_blocks(const EncodeJob& job) noexcept {
  constexpr int kBlock = Format::kInfo.block;
  alignas(64) float x[kBlock * kLanes];
  alignas(64) float importance[kBlock * kLanes];
  alignas(64) float mean_square[kMaxEncodeRows];
  alignas(64) float lane_mean_square[kLanes] = {};
  constexpr bool kUsesImportance = Format::kInfo.uses_importance;
  const bool weighted = kUsesImportance && job.importance;
  if constexpr (WeighsByRow<Format>) {
    if (weighted) row_mean_squares<V>(job, mean_square);
  }
  const int64_t per_row = job.cols / kBlock, total = per_row * job.rows;
  int64_t row = 0, column = 0;
  uint8_t blocks[kLanes * Format::kInfo.block_bytes];
  for (int64_t first = 0; first < total; first += kLanes) {
    const int count = total - first < kLanes ? int(total - first) : kLanes;
    const float *rows[kLanes], *weights[kLanes];
    uint8_t* out[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
      if (lane >= count) {
        rows[lane] = rows[lane - 1];
        weights[lane] = weights[lane - 1];
        continue;
      }
      rows[lane] = job.x + row * job.row_stride + column * kBlock;
      weights[lane] = weighted ? job.importance + column * kBlock : nullptr;
      out[lane] = job.out + row * job.out_stride + column * Format::kInfo.block_bytes;
      if constexpr (WeighsByRow<Format>) {
        if (weighted) lane_mean_square[lane] = mean_square[row];
      }
      if (++column == per_row) {
        column = 0;
        ++row;
      }
    }
    V::transpose(rows, kBlock, x);
    const Batch<V> batch = {x, importance, V::load(lane_mean_square)};
    // Rows that follow each other in memory are written in place.
    const bool together = out[count - 1] - out[0] == (count - 1) * int64_t(Format::kInfo.block_bytes);
    uint8_t* target = together ? out[0] : blocks;
    if constexpr (kUsesImportance) {
      if (weighted) {
        V::transpose(weights, kBlock, importance);
        Format::template encode<V, true>(batch, target, count);
      } else {
        Format::template encode<V, false>(batch, target, count);
      }
    } else {
      Format::template encode<V, false>(batch, target, count);
    }
    if (!together) {
      for (int lane = 0; lane < count; ++lane) {
        memcpy(out[lane], blocks + lane * Format::kInfo.block_bytes, Format::kInfo.block_bytes);
      }
    }
  }
}

template <class V, class Format>
void encode_floats(const EncodeJob& job) noexcept {
  constexpr int kBytes = Format::kInfo.block_bytes;
  for (int row = 0; row < job.rows; ++row) {
    const float* x = job.x + row * job.row_stride;
    uint8_t* out = job.out + row * job.out_stride;
    if constexpr (kBytes == 4) {
      memcpy(out, x, size_t(job.cols) * 4);
    } else if constexpr (Format::kInfo.ggml_type == F16::kInfo.ggml_type) {
      int64_t i = 0;
      for (; i + kLanes <= job.cols; i += kLanes) {
        uint16_t halves[kLanes];
        V::store_f16(halves, V::load(x + i));
        memcpy(out + 2 * i, halves, sizeof halves);
      }
      for (; i < job.cols; ++i) store_u16(out + 2 * i, f32_to_f16(x[i]));
    } else {
      for (int64_t i = 0; i < job.cols; ++i) store_u16(out + 2 * i, f32_to_bf16(x[i]));
    }
  }
}

}  // namespace kvant
