// Which keys the rows of a job see, and which of them exactly.
#pragma once

#include "kernels/attend_kernels.h"

namespace kvant {

// The keys that a row sees.
struct Reach {
  int64_t begin, end;
};

KVANT_INLINE void reach_of(const AttendJob& job, Reach* reach) {
  for (int64_t r = 0, token = job.first / job.group, left = job.first % job.group; r < job.rows; ++r) {
    const int64_t end = job.causal ? job.position + token + 1 : job.keys, own = (end - 1) / job.chunk * job.chunk;
    reach[r] = {end - job.window > own ? end - job.window : own, end};
    if (++left == job.group) left = 0, ++token;
  }
}

// The keys of a page that a token sees, and which of them exactly: those below low and from high on.
struct Seen {
  int begin, end, low, high;
  KVANT_MEMBER bool none() const { return begin >= end; }
  KVANT_MEMBER bool exact() const { return begin < low || high < end; }
};

KVANT_INLINE int in_page(int64_t place) { return int(place < 0 ? 0 : place < kPageTokens ? place : kPageTokens); }

KVANT_INLINE Seen seen_of(const AttendJob& job, const Reach& reach, int64_t page) {
  const int64_t at = page * kPageTokens, end = reach.end;
  Seen seen = {in_page(reach.begin - at), in_page(end - at), 0, kPageTokens};
  if (job.sink > 0) seen.low = in_page(job.sink - at);
  if (job.near() && page >= job.first_exact) {
    const int64_t full = end - end % job.key_group, tail = end - job.tail;
    seen.high = in_page((tail < full ? tail : full) - at);
  }
  if (seen.low > seen.end) seen.low = seen.end;
  if (seen.high < seen.low) seen.high = seen.low;
  return seen;
}

}  // namespace kvant
