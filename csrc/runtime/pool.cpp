#include "runtime/pool.h"

#include <pthread.h>
#include <unistd.h>
#if defined(__linux__)
#include <sched.h>
#endif

#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <mutex>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "runtime/float_env.h"

namespace kvant {
namespace {

constexpr int kMaxThreads = 256;
// About a fifth of a millisecond: the next product of a layer comes sooner.
constexpr int kSpins = 4000;

void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// CPUs the process may run on, counting the hardware threads of one core once.
int physical_cores() {
#if defined(__linux__)
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) {
    std::set<std::pair<int, int>> cores;
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (!CPU_ISSET(cpu, &allowed)) continue;
      std::pair<int, int> id = {-1, cpu};
      const char* names[] = {"physical_package_id", "core_id"};
      int values[2];
      bool known = true;
      for (int k = 0; k < 2; ++k) {
        char path[128];
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/%s", cpu, names[k]);
        FILE* f = fopen(path, "re");
        known = known && f && fscanf(f, "%d", &values[k]) == 1;
        if (f) fclose(f);
      }
      if (known) id = {values[0], values[1]};
      cores.insert(id);
    }
    if (!cores.empty()) return int(cores.size());
  }
#endif
  const int n = int(std::thread::hardware_concurrency());
  return n > 0 ? n : 1;
}

// Whole CPUs of the cgroup's quota, or a large number when there is none.
int quota_cores() {
  long quota = -1, period = 0;
  if (FILE* f = fopen("/sys/fs/cgroup/cpu.max", "re")) {
    if (fscanf(f, "%ld %ld", &quota, &period) != 2) quota = -1;
    fclose(f);
  } else if (FILE* g = fopen("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "re")) {
    if (fscanf(g, "%ld", &quota) != 1) quota = -1;
    fclose(g);
    if (FILE* h = fopen("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "re")) {
      if (fscanf(h, "%ld", &period) != 1) quota = -1;
      fclose(h);
    }
  }
  if (quota <= 0 || period <= 0) return kMaxThreads;
  return quota < period ? 1 : int(quota / period);
}

int clamp_threads(int n) { return n < 1 ? 1 : n > kMaxThreads ? kMaxThreads : n; }

std::atomic<int> thread_setting{0};

class Pool {
 public:
  void run(int64_t count, int helpers, Task task, void* context) {
    grow(helpers);
    task_ = task;
    context_ = context;
    count_ = count;
    next_.store(0, std::memory_order_relaxed);
    helpers_ = helpers;
    pending_.store(int(workers_.size()), std::memory_order_relaxed);
    {
      std::lock_guard lock(mutex_);
      generation_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    drain();
    for (int spin = 0; pending_.load(std::memory_order_acquire) > 0; ++spin) {
      if (spin < kSpins) {
        relax();
      } else {
        std::this_thread::yield();
      }
    }
  }

 private:
  // A new worker has seen the generations before it, or it would take part in one that is over.
  void grow(int helpers) {
    const uint64_t seen = generation_.load(std::memory_order_relaxed);
    try {
      while (int(workers_.size()) < helpers) {
        const int id = int(workers_.size());
        workers_.emplace_back([this, id, seen] { work(id, seen); });
      }
    } catch (const std::exception&) {
      // No more threads to be had: those that are there do the work.
    }
  }

  void drain() {
    FloatEnv env;
    for (int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < count_;) task_(context_, i);
  }

  void work(int id, uint64_t seen) {
    for (;;) {
      uint64_t generation;
      for (int spin = 0; (generation = generation_.load(std::memory_order_acquire)) == seen; ++spin) {
        if (spin < kSpins) {
          relax();
        } else {
          std::unique_lock lock(mutex_);
          wake_.wait(lock, [&] { return generation_.load(std::memory_order_acquire) != seen; });
        }
      }
      seen = generation;
      if (id < helpers_) drain();
      pending_.fetch_sub(1, std::memory_order_release);
    }
  }

  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<uint64_t> generation_{0};
  std::atomic<int64_t> next_{0};
  std::atomic<int> pending_{0};
  Task task_ = nullptr;
  void* context_ = nullptr;
  int64_t count_ = 0;
  int helpers_ = 0;
};

std::mutex* busy = new std::mutex;
Pool* pool = nullptr;

// The child of a fork has none of the threads and may have inherited a locked mutex: it leaves the
// old pool behind and starts afresh.
void forget_pool() {
  busy = new std::mutex;
  pool = nullptr;
}

void run_alone(int64_t count, Task task, void* context) {
  FloatEnv env;
  for (int64_t i = 0; i < count; ++i) task(context, i);
}

}  // namespace

int default_threads() {
  if (const char* text = getenv("KVANT_THREADS"); text && *text) {
    char* end = nullptr;
    const long n = strtol(text, &end, 10);
    if (*end == '\0' && n > 0) return clamp_threads(n > kMaxThreads ? kMaxThreads : int(n));
  }
  const int cores = physical_cores(), quota = quota_cores();
  return clamp_threads(cores < quota ? cores : quota);
}

int threads() {
  int n = thread_setting.load(std::memory_order_relaxed);
  if (n == 0) {
    n = default_threads();
    thread_setting.store(n, std::memory_order_relaxed);
  }
  return n;
}

void set_threads(int n) { thread_setting.store(n < 1 ? 0 : clamp_threads(n), std::memory_order_relaxed); }

void parallel_for(int64_t count, int limit, Task task, void* context) {
  const int wanted = limit > 0 ? clamp_threads(limit) : threads();
  const int helpers = int(count < wanted ? count : wanted) - 1;
  if (helpers < 1) return run_alone(count, task, context);
  std::unique_lock lock(*busy, std::try_to_lock);
  if (!lock.owns_lock()) return run_alone(count, task, context);
  static const int registered = pthread_atfork(nullptr, nullptr, forget_pool);
  (void)registered;
  if (!pool) pool = new Pool;
  pool->run(count, helpers, task, context);
}

}  // namespace kvant
