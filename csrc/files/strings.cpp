#include "files/strings.h"

#include <cstddef>
#include <cstring>

namespace kvant {
namespace {

constexpr size_t kStep = 16;

// Sixteen bytes; a comparison gives 0xff where it holds. GCC and clang make the baseline's vector instructions of it.
using Bytes = uint8_t __attribute__((vector_size(kStep)));

Bytes load(const uint8_t* p) {
  Bytes v;
  memcpy(&v, p, sizeof v);
  return v;
}

bool none(Bytes v) {
  uint64_t halves[2];
  memcpy(halves, &v, sizeof v);
  return (halves[0] | halves[1]) == 0;
}

// Nonzero where one of the 16 bytes from p cannot follow the three before it; reads p[-3] to p[15].
Bytes wrong(const uint8_t* p) {
  const Bytes b = load(p), b1 = load(p - 1), b2 = load(p - 2), b3 = load(p - 3);
  const auto mask = [](auto truth) { return reinterpret_cast<Bytes>(truth); };
  const Bytes needed = mask(b1 >= 0xc0) | mask(b2 >= 0xe0) | mask(b3 >= 0xf0);
  const Bytes continues = mask((b & 0xc0) == 0x80);
  const Bytes low_a0 = mask(b < 0xa0), low_90 = mask(b < 0x90);
  return (needed ^ continues) | mask((b & 0xfe) == 0xc0) | mask(b >= 0xf5) | (mask(b1 == 0xe0) & low_a0) |
         (mask(b1 == 0xed) & ~low_a0) | (mask(b1 == 0xf0) & low_90) | (mask(b1 == 0xf4) & ~low_90);
}

// Well-formed UTF-8 as Unicode defines it: no overlong forms, no surrogates, nothing above U+10FFFF.
// Without branches on the text: those of a multilingual vocabulary cannot be predicted.
bool valid_utf8(const uint8_t* p, uint64_t size) {
  // The first and the last step are copied between zeros: nothing may be read before the first, and the zeros
  // after the last refuse a character that is cut off.
  uint8_t edge[3 + kStep] = {};
  uint64_t done = size < kStep ? size : kStep;
  if (size > 0) memcpy(edge + 3, p, done);
  Bytes bad = wrong(edge + 3);
  if (size < kStep) return none(bad);
  for (; size - done >= kStep; done += kStep) bad |= wrong(p + done);
  memset(edge, 0, sizeof edge);
  memcpy(edge, p + done - 3, 3 + size - done);
  return none(bad | wrong(edge + 3));
}

}  // namespace

int64_t scan_strings(const uint8_t* data, int64_t size, int64_t offset, int64_t count, bool& utf8,
                     uint64_t* offsets) {
  utf8 = true;
  if (offset < 0 || offset > size || count < 0) return -1;
  uint64_t at = uint64_t(offset);
  // Lengths are ASCII too, byte by byte, unless a byte of theirs has its top bit set. So whole runs of strings
  // are checked as one text: a character cut off by the end of its string meets the next length.
  uint64_t run = at;
  for (int64_t i = 0; i < count; ++i) {
    uint64_t length;
    if (uint64_t(size) - at < 8) return -1;
    memcpy(&length, data + at, 8);
    if (length > uint64_t(size) - at - 8) return -1;
    if (offsets) offsets[i] = at;
    if (length & 0x8080808080808080u) {
      utf8 = utf8 && valid_utf8(data + run, at - run);
      run = at + 8;
    }
    at += 8 + length;
  }
  if (offsets) offsets[count] = at;
  utf8 = utf8 && valid_utf8(data + run, at - run);
  return int64_t(at);
}

}  // namespace kvant
