// Loops over rows in groups whose size the compiler knows.
#pragma once

#include "base/contracts.h"

namespace kvant {

template <int n>
struct Count {
  static constexpr int value = n;
};

// body(first, Count<n>) for groups of kMost, and one for the rest.
template <int kMost, class Body>
KVANT_INLINE void in_groups(int count, Body&& body) {
  int first = 0;
  for (; first + kMost <= count; first += kMost) body(first, Count<kMost>());
  if constexpr (kMost > 1) {
    if (first < count) in_groups<kMost - 1>(count - first, [&](int i, auto n) { body(first + i, n); });
  }
}

// body(Count<count>), count in 1 .. kMost.
template <int kMost, class Body>
KVANT_INLINE void of_count(int count, Body&& body) {
  if constexpr (kMost > 0) {
    if (count == kMost) body(Count<kMost>());
    else of_count<kMost - 1>(count, body);
  }
}

}  // namespace kvant
