// Encoding: as many blocks as there are lanes are transposed so that each lane holds one, then the
// format searches all of them at once. A short last batch repeats its last block.
#pragma once

#include "kernels/check.h"

namespace kvant {

template <class Format>
concept WeighsByRow = requires { Format::kRowMeanSquare; };

// A format that encodes blocks as they lie, and notices by itself what is not finite.
template <class V, class Format>
concept EncodesRows = requires(const float* x, uint8_t* out) { Format::template encode_row<V>(x, out, 1); };

template <class V>
KVANT_INLINE bool all_finite(const EncodeJob& job) {
  for (int row = 0; row < job.rows; ++row) {
    if (find_nonfinite<V>(job.x + row * job.row_stride, Float::f32, job.cols) >= 0) return false;
  }
  return true;
}

// One row of f32, f16 or bf16.
template <class V, class Format>
KVANT_INLINE void narrow_row(const float* x, uint8_t* out, int64_t count) {
  constexpr int kBytes = Format::kInfo.block_bytes, kLanes = V::kLanes;
  if constexpr (kBytes == 4) {
    memcpy(out, x, size_t(count) * 4);
  } else if constexpr (Format::kInfo.ggml_type == F16::kInfo.ggml_type) {
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
      uint16_t halves[kLanes];
      V::store_f16(halves, V::load(x + i));
      memcpy(out + 2 * i, halves, sizeof halves);
    }
    for (; i < count; ++i) store_u16(out + 2 * i, f32_to_f16(x[i]));
  } else {
    constexpr int kRun = 32;
    int64_t i = 0;
    for (; i + kRun <= count; i += kRun) {
      uint16_t halves[kRun];
      for (int k = 0; k < kRun; ++k) halves[k] = f32_to_bf16(x[i + k]);
      memcpy(out + 2 * i, halves, sizeof halves);
    }
    for (; i < count; ++i) store_u16(out + 2 * i, f32_to_bf16(x[i]));
  }
}

// Sum of squares of each row divided by its length, one row per lane, in order of the columns.
template <class V>
KVANT_INLINE void row_mean_squares(const EncodeJob& job, float* out) {
  constexpr int kLanes = V::kLanes;
  Tile<V, 16> tile;
  for (int first = 0; first < job.rows; first += kLanes) {
    auto sum = V::splat(0.0f);
    for (int64_t col = 0; col < job.cols; col += 16) {
      const auto row = [&](int lane) {
        const int r = first + lane < job.rows ? first + lane : job.rows - 1;
        return job.x + r * job.row_stride + col;
      };
      V::transpose(row, 16, tile);
      for (int i = 0; i < 16; ++i) sum = sum + at<V>(tile, i) * at<V>(tile, i);
    }
    V::store(out + first, sum / V::splat(float(job.cols)));
  }
}

// Where the blocks of a job lie. Blocks are numbered along the rows, row after row.
template <class Format>
struct BlockPlaces {
  static constexpr int kBlock = Format::kInfo.block, kBytes = Format::kInfo.block_bytes;
  const EncodeJob& job;
  int64_t per_row = job.cols / kBlock;
  int64_t total = per_row * job.rows;
  // Whether block i + 1 follows block i everywhere, in and out.
  bool seamless = job.rows == 1 || (job.row_stride == job.cols && job.out_stride == per_row * kBytes);

  KVANT_MEMBER const float* x(int64_t i) const {
    return job.x + i / per_row * job.row_stride + i % per_row * kBlock;
  }
  KVANT_MEMBER const float* importance(int64_t i) const { return job.importance + i % per_row * kBlock; }
  KVANT_MEMBER uint8_t* out(int64_t i) const {
    return job.out + i / per_row * job.out_stride + i % per_row * kBytes;
  }
};

// Asks for what the same place of the next task will read, while this one computes.
KVANT_INLINE void prefetch_ahead(const float* x, int count) {
  constexpr int kDistance = 8 * 1024;
  for (int i = 0; i < count; i += 16) __builtin_prefetch(x + kDistance + i, 0, 2);
}

// Blocks that follow each other, to one block per lane. Out of line: once per block size.
template <class V, int kBlock>
__attribute__((noinline)) void transpose_blocks(const float* blocks, float* out) noexcept {
  V::transpose([blocks](int lane) { return blocks + lane * kBlock; }, kBlock, out);
}

template <class V, class Format, bool kWeighted>
KVANT_INLINE void encode_run(const EncodeJob& job) {
  using Places = BlockPlaces<Format>;
  constexpr int kBlock = Places::kBlock, kBytes = Places::kBytes, kLanes = V::kLanes;
  alignas(64) float x[kBlock * kLanes];
  alignas(64) float importance[kWeighted ? kBlock * kLanes : 1];
  alignas(64) float gathered[kBlock * kLanes];
  alignas(64) float mean_square[kMaxEncodeRows];
  alignas(64) float lane_mean_square[kLanes] = {};
  if constexpr (kWeighted && WeighsByRow<Format>) row_mean_squares<V>(job, mean_square);
  const Places places{job};
  for (int64_t first = 0; first < places.total; first += kLanes) {
    const int count = places.total - first < kLanes ? int(places.total - first) : kLanes;
    const auto block = [&](int lane) { return first + (lane < count ? lane : count - 1); };
    const auto gather = [&](auto&& place) {
      for (int lane = 0; lane < kLanes; ++lane) memcpy(gathered + lane * kBlock, place(block(lane)), 4 * kBlock);
      return gathered;
    };
    const bool whole = places.seamless && count == kLanes;
    if (whole) prefetch_ahead(job.x + first * kBlock, kBlock * kLanes);
    transpose_blocks<V, kBlock>(
        whole ? job.x + first * kBlock : gather([&](int64_t i) { return places.x(i); }), x);
    if constexpr (kWeighted) {
      transpose_blocks<V, kBlock>(gather([&](int64_t i) { return places.importance(i); }), importance);
      if constexpr (WeighsByRow<Format>) {
        for (int lane = 0; lane < kLanes; ++lane) lane_mean_square[lane] = mean_square[block(lane) / places.per_row];
      }
    }
    const Batch<V> batch = {x, kWeighted ? importance : nullptr, V::load(lane_mean_square)};
    if (places.seamless) {
      Format::template encode<V, kWeighted>(batch, job.out + first * kBytes, count);
    } else {
      uint8_t blocks[kLanes * kBytes];
      Format::template encode<V, kWeighted>(batch, blocks, count);
      for (int lane = 0; lane < count; ++lane) memcpy(places.out(first + lane), blocks + lane * kBytes, kBytes);
    }
  }
}

template <class V, class Format>
bool encode_blocks(const EncodeJob& job) noexcept {
  if constexpr (EncodesRows<V, Format>) {
    for (int row = 0; row < job.rows; ++row) {
      if (!Format::template encode_row<V>(job.x + row * job.row_stride, job.out + row * job.out_stride,
                                          job.cols / Format::kInfo.block)) {
        return false;
      }
    }
    return true;
  } else {
    if (!all_finite<V>(job)) return false;
    if constexpr (Format::kInfo.uses_importance) {
      if (job.importance) return encode_run<V, Format, true>(job), true;
    }
    return encode_run<V, Format, false>(job), true;
  }
}

template <class V, class Format>
bool encode_floats(const EncodeJob& job) noexcept {
  if (!all_finite<V>(job)) return false;
  for (int row = 0; row < job.rows; ++row) {
    narrow_row<V, Format>(job.x + row * job.row_stride, job.out + row * job.out_stride, job.cols);
  }
  return true;
}

template <class V>
void narrow_floats(const float* x, Float type, uint16_t* out, int64_t count) noexcept {
  auto* bytes = reinterpret_cast<uint8_t*>(out);
  if (type == Float::f16) {
    narrow_row<V, F16>(x, bytes, count);
  } else {
    narrow_row<V, BF16>(x, bytes, count);
  }
}

}  // namespace kvant
