#include "kv/select_rows.h"

#include <algorithm>
#include <cstring>

namespace kvant {
namespace {

int64_t coder_bytes(const Kernels& kernels, const KvLayer& layer, int side) {
  KvCoder coder(kernels, layer, side);
  Carver needed;
  coder.place(needed, kPageTokens);
  return int64_t(needed.bytes());
}

// Tokens from number i on of what is kept that lie one behind the other in one page, at most `most`.
int64_t run_of(const int64_t* kept, int64_t i, int64_t most) {
  const int64_t left = kPageTokens - kept[i] % kPageTokens;
  int64_t count = 1;
  while (count < std::min(left, most) && kept[i + count] == kept[i] + count) ++count;
  return count;
}

// Tokens of a side of floats to other places, of the same page perhaps.
void move_floats(const KvLayer& layer, int side, const uint8_t* from, int64_t token, int64_t count, uint8_t* to, int64_t place) {
  const int64_t size = layer.info(side).bits / 8;
  if (side == 1) {
    const int64_t row = size * kv_width(layer.value_dim);
    memmove(to + place * row, from + token * row, size_t(count * row));
    return;
  }
  for (int64_t at = 0; at < layer.dim * kPageTokens; at += kPageTokens) {
    memmove(to + (at + place) * size, from + (at + token) * size, size_t(count * size));
  }
}

}  // namespace

int64_t KvMove::alike(int64_t i, int64_t until) const {
  if (!what->turn) return until - i;
  if (i < what->turn_begin) return std::min(until, what->turn_begin) - i;
  return (i < what->turn_end ? std::min(until, what->turn_end) : until) - i;
}

void KvRowMover::place(Carver& carver, const KvMove& move) {
  const KvLayer& layer = *move.layer;
  coder_memory_ = carver.take<uint8_t>(std::max(coder_bytes(kernels_, layer, 0), coder_bytes(kernels_, layer, 1)));
  page_ = carver.take<uint8_t>(std::max(layer.page_bytes(), layer.exact_bytes()));
  for (int side = 0; side < 2; ++side) {
    staged_[side] = carver.take<float>(move.exact_rows() * kv_blocks(layer.size(side)) * kKvBlock);
  }
  if (!move.what->turn) return;
  raw_ = carver.take<float>(kPageTokens * int64_t(layer.dim));
  cos_ = carver.take<float>(layer.dim + 16);
  sin_ = carver.take<float>(layer.dim + 16);
  frequencies_ = carver.take<double>(layer.dim / 2);
}

bool KvRowMover::run(const KvMove& move, bool trial) {
  if (const KvTurn* turn = move.what->turn) {
    kernels_.ops->rope_frequencies(turn->theta, turn->factors, turn->rotary, frequencies_);
    kernels_.ops->rope_angles(double(turn->by) / turn->scale, frequencies_, turn->rotary / 2, turn->interleaved, cos_, sin_);
  }
  bool fits = true;
  // Exact copies are written last: until then they say what turned keys were.
  for (const auto step : {&KvRowMover::stage, &KvRowMover::body, &KvRowMover::put_exact}) {
    for (int side = 0; side < 2; ++side) {
      KvCoder coder(kernels_, *move.layer, side);
      Carver carver(coder_memory_);
      coder.place(carver, kPageTokens);
      fits = (this->*step)(move, side, coder, trial) && fits;
    }
  }
  return fits;
}

// The copy that tokens from `token` on of its page have and that the last query saw, or null. Copies that are there still
// for a rollback do not count: how many there are depends on how tokens were appended.
const uint8_t* KvRowMover::exact_page(const KvMove& move, int side, int64_t token) const {
  const KvLayer& layer = *move.layer;
  const HeadPages& own = *move.own;
  if (!layer.info(side).quantized) return nullptr;
  const int64_t page = token / kPageTokens, offset = side ? layer.exact_offset() : 0;
  if (token < layer.sink) return own.sinks[size_t(page)]->data + offset;
  if (layer.tail == 0 || token < own.length - layer.tail || page < own.first_exact) return nullptr;
  return own.exact[size_t(page - own.first_exact)]->data + offset;
}

// Of tokens i .. i + count - 1 of what is kept, turned all or none: as they are seen exactly, or as they are coded.
bool KvRowMover::floats(const KvMove& move, int side, KvCoder& coder, int64_t i, int64_t count) {
  const KvLayer& layer = *move.layer;
  const HeadPages& own = *move.own;
  for (int64_t r = 0; r < count;) {
    const int64_t token = move.what->kept[i + r];
    int64_t n = run_of(move.what->kept, i + r, count - r);
    // What is exact may begin and end within a page.
    for (const int64_t edge : {layer.sink, own.length - layer.tail}) {
      if (token < edge) n = std::min(n, edge - token);
    }
    const int place = int(token % kPageTokens);
    if (const uint8_t* exact = exact_page(move, side, token)) {
      coder.take_exact(exact, place, n, r);
    } else if (token >= own.first * kPageTokens) {
      coder.take(own.body[size_t(token / kPageTokens - own.first)]->data + (side ? layer.side_bytes(0) : 0), place, n, r);
      coder.decode(n, r);
    } else {
      // A window has let go of it, and no token will see it.
      memset(coder.floats() + r * coder.width(), 0, size_t(n * coder.width()) * 4);
    }
    r += n;
  }
  return side == 1 || !move.turned(i) || turn(move, coder, count);
}

bool KvRowMover::turn(const KvMove& move, KvCoder& coder, int64_t count) {
  const KvTurn& how = *move.what->turn;
  const int32_t dim = move.layer->dim;
  coder.untransform(move.what->head, count);
  kernels_.ops->rope({coder.floats(), coder.width(), raw_, dim, int32_t(count), dim, how.rotary, how.interleaved, cos_, sin_});
  return coder.gather({raw_, Float::f32, dim, 0}, move.what->head, 0, count, 0) < 0;
}

bool KvRowMover::stage(const KvMove& move, int side, KvCoder& coder, bool) {
  float* to = staged_[side];
  bool fits = true;
  const auto some = [&](int64_t i, int64_t until) {
    while (i < until) {
      const int64_t count = move.alike(i, std::min(until, i + kPageTokens));
      fits = floats(move, side, coder, i, count) && fits;
      memcpy(to, coder.floats(), size_t(count * coder.width()) * 4);
      to += count * coder.width();
      i += count;
    }
  };
  some(0, move.sinks());
  some(move.first_exact(), move.next.length);
  return fits;
}

bool KvRowMover::body(const KvMove& move, int side, KvCoder& coder, bool trial) {
  const KvLayer& layer = *move.layer;
  const HeadPages &own = *move.own, &next = move.next;
  const int64_t offset = side ? layer.side_bytes(0) : 0, length = next.length;
  bool fits = true;
  for (int64_t page = std::max(next.first, move.same / kPageTokens); page < pages_of(length); ++page) {
    uint8_t* to = (trial ? page_ : next.body[size_t(page - next.first)]->data) + offset;
    const int64_t until = std::min((page + 1) * kPageTokens, length);
    for (int64_t i = page * kPageTokens; i < until;) {
      const int64_t count = side ? until - i : move.alike(i, until);
      const int place = int(i % kPageTokens);
      if (side == 0 && move.turned(i)) {
        fits = floats(move, side, coder, i, count) && coder.encode(count, count) < 0 && coder.put(0, count, to, place) && fits;
      } else if (!trial) {
        for (int64_t r = 0; r < count;) {
          const int64_t token = move.what->kept[i + r], n = run_of(move.what->kept, i + r, count - r);
          const uint8_t* from = own.body[size_t(token / kPageTokens - own.first)]->data + offset;
          if (layer.info(side).quantized) coder.take(from, int(token % kPageTokens), n, r);
          else move_floats(layer, side, from, token % kPageTokens, n, to, place + r);
          r += n;
        }
        if (layer.info(side).quantized) (void)coder.put(0, count, to, place);
      }
      i += count;
    }
  }
  return fits;
}

bool KvRowMover::put_exact(const KvMove& move, int side, KvCoder& coder, bool trial) {
  const int64_t offset = side ? move.layer->exact_offset() : 0;
  const float* from = staged_[side];
  bool fits = true;
  const auto some = [&](int64_t i, int64_t until, const std::vector<Page*>& pages, int64_t first) {
    while (i < until) {
      const int64_t page = i / kPageTokens, count = std::min((page + 1) * kPageTokens, until) - i;
      memcpy(coder.floats(), from, size_t(count * coder.width()) * 4);
      uint8_t* to = (trial ? page_ : pages[size_t(page - first)]->data) + offset;
      fits = coder.put_exact(0, count, to, int(i % kPageTokens)) && fits;
      from += count * coder.width();
      i += count;
    }
  };
  some(0, move.sinks(), move.next.sinks, 0);
  some(move.first_exact(), move.next.length, move.next.exact, move.next.first_exact);
  return fits;
}

}  // namespace kvant
