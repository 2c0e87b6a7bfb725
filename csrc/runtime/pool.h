// One persistent pool of threads. Work is split in advance into tasks whose results do not depend
// on who runs them, so the number of threads never shows in a result.
#pragma once

#include <cstdint>

namespace kvant {

// Physical cores this process may use (affinity and cgroup quota), or KVANT_THREADS when set.
int default_threads();
int threads();
// n < 1 sets the default again.
void set_threads(int n);

using Task = void (*)(void* context, int64_t index);

// Runs task(context, i) for i in [0, count) on at most `limit` threads (0: the set number), the
// caller among them. Concurrent callers are served one at a time; a second runs its work alone.
// After a fork the child starts a pool of its own.
void parallel_for(int64_t count, int limit, Task task, void* context);

template <class F>
void parallel_for(int64_t count, int limit, F&& body) {
  parallel_for(count, limit, [](void* context, int64_t i) { (*static_cast<F*>(context))(i); }, &body);
}

}  // namespace kvant
