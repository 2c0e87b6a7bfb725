// Sixteen bytes at a time in the compilers' own vector type: for unpacking codes, where a loop over
// bytes is left scalar or torn apart by the optimizer. No float arithmetic here.
#pragma once

#include "formats/format.h"

namespace kvant {

typedef uint8_t Bytes16 __attribute__((vector_size(16)));

KVANT_INLINE Bytes16 load_bytes16(const uint8_t* p) {
  Bytes16 v;
  memcpy(&v, p, 16);
  return v;
}

KVANT_INLINE void store_codes16(int8_t* p, Bytes16 v) { memcpy(p, &v, 16); }

// Two words side by side. Building the vector in memory would make its load wait for the stores.
KVANT_INLINE Bytes16 join_words(uint64_t first, uint64_t second) {
  typedef uint64_t Words2 __attribute__((vector_size(16)));
  return Bytes16(Words2{first, second});
}

// 16 bytes to 32 codes: low nibbles, then high nibbles, less the bias.
KVANT_INLINE void unpack_nibbles32(const uint8_t* packed, int8_t* codes, uint8_t bias = 0) {
  const Bytes16 v = load_bytes16(packed);
  store_codes16(codes, (v & 15) - bias);
  store_codes16(codes + 16, (v >> 4) - bias);
}

// Two bytes to sixteen of 0xff where a bit is set, lowest bit first.
KVANT_INLINE Bytes16 spread_bits16(uint8_t first, uint8_t second) {
  const Bytes16 v = join_words(first * 0x0101010101010101u, second * 0x0101010101010101u);
  const Bytes16 mask = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
  return Bytes16((v & mask) == mask);
}

}  // namespace kvant
