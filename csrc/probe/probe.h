// The probes on the pool: how fast this machine reads, copies, stores and multiplies with the ISA in
// use. The caller (capi) has checked alignment and sizes, and takes the time.
#pragma once

#include <cstdint>

#include "base/status.h"

namespace kvant {

// streams: read at 1, 2, 4 or 8 places in turn. sum: of all 32-bit words, modulo 2^32.
Status probe_read(const uint8_t* p, int64_t bytes, int streams, int limit, uint32_t& sum);

// stream: write around the caches.
Status probe_copy(const uint8_t* from, uint8_t* to, int64_t bytes, bool stream, int limit);

// Writes zeros around the caches and meanwhile reads from_bytes (may be 0) from `from`.
Status probe_store(uint8_t* to, int64_t bytes, const uint8_t* from, int64_t from_bytes, int limit);

enum class Product : int32_t { int8 = 0, f32 = 1 };

// Runs `steps` steps in each of `tasks` tasks. products: multiply-adds done; sum: of their results,
// each 1, while it is small.
Status probe_products(Product kind, int64_t steps, int64_t tasks, int limit, int64_t& products, double& sum);

// A chain of 16 * steps additions, each of which waits for the one before: a clock tick each.
uint64_t probe_ticks(int64_t steps);

}  // namespace kvant
