// Length-prefixed strings as GGUF stores them: u64 length, then that many bytes of UTF-8.
// Every length is checked against the buffer before it is believed.
#pragma once

#include <cstdint>

namespace kvant {

// Walks `count` strings from `offset` on. Returns the offset behind the last one, or -1 when they
// run past `size`; utf8 says whether all of them were valid. When offsets is set it receives
// count + 1 places: where each string's bytes begin less 8 for its length, and the end.
int64_t scan_strings(const uint8_t* data, int64_t size, int64_t offset, int64_t count, bool& utf8,
                     uint64_t* offsets);

}  // namespace kvant
