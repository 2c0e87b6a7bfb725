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
constexpr int kCountBits = 48;
constexpr uint64_t kCountMask = (uint64_t(1) << kCountBits) - 1;
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
    done_.store(0, std::memory_order_relaxed);
    left_.store(uint64_t(helpers) << kCountBits | uint64_t(count), std::memory_order_release);
    {
      std::lock_guard lock(mutex_);
      generation_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    drain(0);
    // Not for workers who are still asleep: what there was to do is done.
    for (int spin = 0; done_.load(std::memory_order_acquire) < count; ++spin) {
      if (spin < kSpins) {
        relax();
      } else {
        std::this_thread::yield();
      }
    }
  }

 private:
  void grow(int helpers) {
    try {
      while (int(workers_.size()) < helpers) {
        const int id = int(workers_.size()) + 1;
        workers_.emplace_back([this, id] { work(id); });
      }
    } catch (const std::exception&) {
      // No more threads to be had: those that are there do the work.
    }
  }

  // Tasks are taken off left_; whoever has taken one keeps the run, and so what it reads of it, from ending.
  void drain(int id) {
    FloatEnv env;
    uint64_t left = left_.load(std::memory_order_acquire);
    while ((left & kCountMask) > 0 && uint64_t(id) <= left >> kCountBits) {
      if (!left_.compare_exchange_weak(left, left - 1, std::memory_order_acq_rel, std::memory_order_acquire)) continue;
      task_(context_, count_ - int64_t(left & kCountMask));
      done_.fetch_add(1, std::memory_order_release);
      left = left_.load(std::memory_order_acquire);
    }
  }

  void work(int id) {
    for (uint64_t seen = 0;;) {
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
      drain(id);
    }
  }

  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<uint64_t> generation_{0};
  // How many workers take part, and how many tasks are left.
  std::atomic<uint64_t> left_{0};
  std::atomic<int64_t> done_{0};
  Task task_ = nullptr;
  void* context_ = nullptr;
  int64_t count_ = 0;
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
