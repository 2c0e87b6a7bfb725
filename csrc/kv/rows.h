// Rows on their way into a cache: gathered, transformed, coded.
#pragma once

#include "kv/cache.h"
#include "runtime/carver.h"

namespace kvant {

// Of one side of some heads and tokens, row after row in the order of heads and then tokens.
class KvCoder {
 public:
  KvCoder(const Kernels& kernels, const KvLayer& layer, int side)
      : kernels_(kernels), layer_(layer), side_(side), dim_(layer.size(side)), width_(kv_blocks(dim_) * kKvBlock) {}

  void place(Carver& carver, int64_t rows);
  // Floats of a head's tokens from .. until - 1 into rows r and on, transformed. The first token with a number that is
  // not finite, or -1.
  int64_t gather(const KvInput& in, int head, int64_t from, int64_t until, int64_t r);
  // The first row of the first token, of so many tokens a head, that cannot be stored; or -1.
  int64_t encode(int64_t rows, int64_t tokens);
  // A row of a file into row r.
  void read(const uint8_t* bytes, int64_t r);
  int64_t first_refused(int64_t rows, int64_t tokens) const;
  // Rows r .. into places of a page. False if one is too large for the type.
  bool put(int64_t r, int64_t rows, uint8_t* side, int token) const;
  bool put_exact(int64_t r, int64_t rows, uint8_t* side, int token) const;

  // Of keys coded by channel: the groups that are full once there are tokens up to the place `end` of a page, where there
  // were tokens up to `begin` before, from the page of halves beside.
  void put_groups(const uint8_t* exact, uint8_t* side, int begin, int end) const;

  // Out of a page into rows r ..; the exact copy's floats.
  void take(const uint8_t* side, int token, int64_t rows, int64_t r = 0);
  void take_exact(const uint8_t* side, int token, int64_t rows, int64_t r);
  void write(int64_t rows, uint8_t* bytes) const;
  // Floats of what was taken into rows r .., as they were coded.
  void decode(int64_t rows, int64_t r = 0);
  void untransform(int head, int64_t rows);

  float* floats() { return x_; }
  int32_t width() const { return width_; }

 private:
  void copy(const KvInput& in, int head, int64_t token, float* to) const;
  void rotate(const float* from, int64_t stride, int64_t rows, float* to, bool inverse) const;
  bool refused(int64_t r) const;
  bool by_channel() const { return side_ == 0 && layer_.key_group() > 1; }
  // Whether each row has codes and scales of its own.
  bool coded() const { return layer_.info(side_).quantized && !by_channel(); }
  const KvCodecKernels& codec() const { return kernels_.attend->codec[int(layer_.codec[side_])]; }
  int blocks() const { return width_ / kKvBlock; }
  KvRows from(int64_t r) const {
    return {rows_.codes + r * width_, rows_.scales + r * blocks(), rows_.mins + r * blocks()};
  }

  const Kernels& kernels_;
  const KvLayer& layer_;
  const int side_;
  const int32_t dim_, width_;
  float* x_ = nullptr;
  KvRows rows_ = {};
  uint8_t* bytes_ = nullptr;
};

}  // namespace kvant
