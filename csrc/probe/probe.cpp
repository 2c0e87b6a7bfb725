#include "probe/probe.h"

#include <atomic>
#include <bit>

#include "isa/select.h"
#include "runtime/pool.h"

namespace kvant {
namespace {

// Bytes of one task: small, so that a thread that lost its processor for a while delays nobody.
constexpr int64_t kTaskBytes = int64_t(2) << 20;

int64_t task_count(int64_t bytes) { return (bytes + kTaskBytes - 1) / kTaskBytes; }

int64_t task_bytes(int64_t bytes, int64_t task) {
  const int64_t left = bytes - task * kTaskBytes;
  return left < kTaskBytes ? left : kTaskBytes;
}

}  // namespace

Status probe_read(const uint8_t* p, int64_t bytes, int streams, int limit, uint32_t& sum) {
  const Kernels* k;
  if (const Status s = current_kernels(k); !s.ok()) return s;
  const auto read = k->probe->read[std::countr_zero(unsigned(streams))];
  std::atomic<uint32_t> total{0};
  parallel_for(task_count(bytes), limit, [&](int64_t i) {
    total.fetch_add(read(p + i * kTaskBytes, task_bytes(bytes, i)), std::memory_order_relaxed);
  });
  sum = total.load();
  return {};
}

Status probe_copy(const uint8_t* from, uint8_t* to, int64_t bytes, bool stream, int limit) {
  const Kernels* k;
  if (const Status s = current_kernels(k); !s.ok()) return s;
  parallel_for(task_count(bytes), limit, [&](int64_t i) {
    k->probe->copy(from + i * kTaskBytes, to + i * kTaskBytes, task_bytes(bytes, i), stream);
  });
  return {};
}

Status probe_store(uint8_t* to, int64_t bytes, const uint8_t* from, int64_t from_bytes, int limit) {
  const Kernels* k;
  if (const Status s = current_kernels(k); !s.ok()) return s;
  const int64_t tasks = task_count(bytes);
  // Whole lines of `from` to each task.
  const int64_t share = tasks > 0 ? (from_bytes / tasks + 63) / 64 * 64 : 0;
  std::atomic<uint64_t> total{0};
  parallel_for(tasks, limit, [&](int64_t i) {
    const int64_t start = i * share < from_bytes ? i * share : from_bytes;
    const int64_t end = start + share < from_bytes ? start + share : from_bytes;
    total += k->probe->store(to + i * kTaskBytes, task_bytes(bytes, i), from + start, (end - start) / 64 * 64);
  });
  return {};
}

Status probe_products(Product kind, int64_t steps, int64_t tasks, int limit, int64_t& products, double& sum) {
  const Kernels* k;
  if (const Status s = current_kernels(k); !s.ok()) return s;
  const bool int8 = kind == Product::int8;
  const auto run = int8 ? k->probe->dot : k->probe->fma;
  std::atomic<double> total{0.0};
  parallel_for(tasks, limit, [&](int64_t) {
    const double found = run(steps);
    double seen = total.load(std::memory_order_relaxed);
    while (!total.compare_exchange_weak(seen, seen + found)) {
    }
  });
  products = steps * tasks * (int8 ? k->probe->dot_products : k->probe->fma_products);
  sum = total.load();
  return {};
}

uint64_t probe_ticks(int64_t steps) {
  uint64_t x = 0;
  for (int64_t i = 0; i < steps; ++i) {
    for (int j = 0; j < 16; ++j) {
      asm volatile("" : "+r"(x));
      x += uint64_t(i);
    }
  }
  return x;
}

}  // namespace kvant
