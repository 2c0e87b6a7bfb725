// Drives the thread pool under a race detector: pools that grow, callers that meet.
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <thread>
#include <vector>

#include "runtime/pool.h"

namespace {

// Runs tasks on at most `limit` threads; the number of tasks not run exactly once.
int misses(int tasks, int limit) {
  std::vector<int> runs(size_t(tasks), 0);
  kvant::parallel_for(tasks, limit, [&](int64_t i) { ++runs[size_t(i)]; });
  int wrong = 0;
  for (const int n : runs) wrong += n != 1;
  return wrong;
}

}  // namespace

int main() {
  std::atomic<int> wrong{0};
  for (int round = 0; round < 50; ++round) {
    for (const int limit : {2, 3, 4, 6, 9, 12, 3, 1}) wrong += misses(57, limit);
  }
  std::vector<std::thread> callers;
  for (int t = 0; t < 3; ++t) {
    callers.emplace_back([&] {
      for (int round = 0; round < 100; ++round) wrong += misses(33, 1 + round % 7);
    });
  }
  for (auto& caller : callers) caller.join();
  printf("%d tasks not run once\n", wrong.load());
  return wrong.load() != 0;
}
