#include "files/strings.h"

#include <cstring>

namespace kvant {
namespace {

bool continuation(uint8_t c) { return (c & 0xc0) == 0x80; }

// Well-formed UTF-8 as Unicode defines it: no overlong forms, no surrogates, nothing above U+10FFFF.
bool valid_utf8(const uint8_t* p, uint64_t size) {
  const uint8_t* end = p + size;
  while (p < end) {
    uint64_t eight;
    if (end - p >= 8 && (memcpy(&eight, p, 8), (eight & 0x8080808080808080u) == 0)) {
      p += 8;
    } else if (*p < 0x80) {
      ++p;
    } else if (*p >= 0xc2 && *p <= 0xdf) {
      if (end - p < 2 || !continuation(p[1])) return false;
      p += 2;
    } else if (*p >= 0xe0 && *p <= 0xef) {
      if (end - p < 3 || !continuation(p[1]) || !continuation(p[2])) return false;
      if ((p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xed && p[1] > 0x9f)) return false;
      p += 3;
    } else if (*p >= 0xf0 && *p <= 0xf4) {
      if (end - p < 4 || !continuation(p[1]) || !continuation(p[2]) || !continuation(p[3])) return false;
      if ((p[0] == 0xf0 && p[1] < 0x90) || (p[0] == 0xf4 && p[1] > 0x8f)) return false;
      p += 4;
    } else {
      return false;
    }
  }
  return true;
}

}  // namespace

int64_t scan_strings(const uint8_t* data, int64_t size, int64_t offset, int64_t count, bool& utf8,
                     uint64_t* offsets) {
  utf8 = true;
  if (offset < 0 || offset > size || count < 0) return -1;
  uint64_t at = uint64_t(offset);
  for (int64_t i = 0; i < count; ++i) {
    uint64_t length;
    if (uint64_t(size) - at < 8) return -1;
    memcpy(&length, data + at, 8);
    if (length > uint64_t(size) - at - 8) return -1;
    if (offsets) offsets[i] = at;
    utf8 = utf8 && valid_utf8(data + at + 8, length);
    at += 8 + length;
  }
  if (offsets) offsets[count] = at;
  return int64_t(at);
}

}  // namespace kvant
