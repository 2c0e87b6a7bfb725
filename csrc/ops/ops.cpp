#include "ops/ops.h"

#include <atomic>

#include "isa/select.h"
#include "runtime/buffer.h"
#include "runtime/float_env.h"
#include "runtime/pool.h"

namespace kvant {
namespace {

// Elements of one task: some microseconds of work, which is what waking a thread costs.
constexpr int64_t kTaskElements = 32 * 1024;

int64_t at_least_one(int64_t n) { return n < 1 ? 1 : n; }

int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// Calls body(job) for runs of whole rows.
template <class Body>
void for_rows(const RowsJob& all, int limit, Body&& body) {
  const int64_t step = at_least_one(kTaskElements / at_least_one(all.cols));
  parallel_for((all.rows + step - 1) / step, limit, [&](int64_t i) {
    RowsJob job = all;
    job.x += i * step * all.stride;
    job.out += i * step * all.out_stride;
    job.rows = all.rows - i * step < step ? all.rows - i * step : step;
    body(job);
  });
}

// The largest first, the first of equals before the others, NaN last.
void choose_best(const float* values, int64_t count, int64_t top, int64_t* ids, float* best) {
  const auto better = [](float a, float b) { return a > b || (a == a && b != b); };
  for (int64_t i = 0; i < count; ++i) {
    if (i >= top && !better(values[i], best[top - 1])) continue;
    int64_t slot = i < top ? i : top - 1;
    for (; slot > 0 && better(values[i], best[slot - 1]); --slot) {
      best[slot] = best[slot - 1];
      ids[slot] = ids[slot - 1];
    }
    best[slot] = values[i];
    ids[slot] = i;
  }
}

void divide_by_sum(float* x, int64_t count) {
  float sum = x[0];
  for (int64_t i = 1; i < count; ++i) sum += x[i];
  for (int64_t i = 0; i < count; ++i) x[i] /= sum;
}

}  // namespace

Status rms_norm(const RowsJob& rows, const float* weight, double eps, int limit) {
  const Kernels* k;
  if (const Status s = current_kernels(k); !s.ok()) return s;
  if (rows.cols > 0) for_rows(rows, limit, [&](const RowsJob& job) { k->ops->rms_norm(job, weight, eps); });
  return {};
}

Status softmax(const RowsJob& rows, double scale, int limit) {
  const Kernels* k;
  if (const Status s = current_kernels(k); !s.ok()) return s;
  if (rows.cols > 0) for_rows(rows, limit, [&](const RowsJob& job) { k->ops->softmax(job, scale); });
  return {};
}

Status hadamard(const HadamardJob& all, int limit) {
  const Kernels* k;
  if (const Status s = current_kernels(k); !s.ok()) return s;
  if (all.rows.cols <= 0) return {};
  for_rows(all.rows, limit, [&](const RowsJob& rows) {
    HadamardJob job = all;
    job.rows = rows;
    k->ops->hadamard(job);
  });
  return {};
}

Status scale(const RowsJob& rows, double factor, int limit) {
  const Kernels* k;
  if (const Status s = current_kernels(k); !s.ok()) return s;
  for_rows(rows, limit, [&](const RowsJob& job) {
    for (int64_t row = 0; row < job.rows; ++row) {
      k->ops->scale(job.x + row * job.stride, factor, job.out + row * job.out_stride, job.cols);
    }
  });
  return {};
}

Status add(const RowsJob& rows, int limit) {
  const Kernels* k;
  if (const Status s = current_kernels(k); !s.ok()) return s;
  for_rows(rows, limit, [&](const RowsJob& job) {
    for (int64_t row = 0; row < job.rows; ++row) {
      k->ops->add(job.x + row * job.stride, job.out + row * job.out_stride, job.cols);
    }
  });
  return {};
}

Status route(const Route& all, int limit) {
  const Kernels* k;
  if (const Status s = current_kernels(k); !s.ok()) return s;
  const int64_t step = at_least_one(kTaskElements / (all.experts * all.top));
  std::atomic<bool> no_memory{false};
  parallel_for((all.rows + step - 1) / step, limit, [&](int64_t i) {
    auto* scratch = static_cast<float*>(thread_scratch(size_t(all.experts) * sizeof(float)));
    if (!scratch) return no_memory.store(true);
    const int64_t last = (i + 1) * step < all.rows ? (i + 1) * step : all.rows;
    for (int64_t row = i * step; row < last; ++row) {
      const float* scores = all.scores + row * all.stride;
      float* shares = all.shares + row * all.top;
      const bool after = all.shares_of == SharesOf::chosen;
      if (!after) k->ops->softmax({scores, all.stride, scratch, all.experts, 1, all.experts}, 1.0);
      choose_best(after ? scores : scratch, all.experts, all.top, all.ids + row * all.top, shares);
      if (after) k->ops->softmax({shares, all.top, shares, all.top, 1, all.top}, 1.0);
      if (all.shares_of == SharesOf::normed) divide_by_sum(shares, all.top);
    }
  });
  if (no_memory.load()) return {Code::no_memory, "no memory for scratch"};
  return {};
}

Status activation_mul(Activation activation, const RowsJob& rows, const float* up, int64_t up_stride, int limit) {
  const Kernels* k;
  if (const Status s = current_kernels(k); !s.ok()) return s;
  if (rows.cols <= 0) return {};
  const auto run = k->ops->activation_mul[int(activation)];
  // Elements know nothing of each other: long rows are cut.
  const int64_t width = rows.cols < kTaskElements ? rows.cols : kTaskElements;
  const int64_t across = (rows.cols + width - 1) / width, step = at_least_one(kTaskElements / width);
  parallel_for((rows.rows + step - 1) / step * across, limit, [&](int64_t i) {
    const int64_t first = i / across * step, col = i % across * width;
    const int64_t last = first + step < rows.rows ? first + step : rows.rows;
    const int64_t count = rows.cols - col < width ? rows.cols - col : width;
    for (int64_t row = first; row < last; ++row) {
      run(rows.x + row * rows.stride + col, up + row * up_stride + col, rows.out + row * rows.out_stride + col, count);
    }
  });
  return {};
}

Status rope(const Rope& all, int limit) {
  const Kernels* k;
  if (const Status s = current_kernels(k); !s.ok()) return s;
  const int32_t pairs = all.rotary / 2;
  const int64_t table = round_up(all.interleaved ? all.rotary : pairs, 16);
  // Scratch of each thread: the frequencies, of which those of the caller are used, and two tables. All ask for
  // the same number of bytes, so that the caller's does not move when its own tasks ask again.
  const int64_t frequency_bytes = round_up(pairs * 8, 64);
  const auto bytes = size_t(frequency_bytes + 2 * table * 4);
  auto* frequencies = static_cast<double*>(thread_scratch(bytes));
  if (!frequencies) return {Code::no_memory, "no memory for scratch"};
  {
    FloatEnv env;
    k->ops->rope_frequencies(all.theta, all.factors, all.rotary, frequencies);
  }
  const int64_t step = at_least_one(kTaskElements / at_least_one(int64_t(all.heads) * all.dim));
  std::atomic<bool> no_memory{false};
  parallel_for((all.tokens + step - 1) / step, limit, [&](int64_t i) {
    auto* scratch = static_cast<char*>(thread_scratch(bytes));
    if (!scratch) return no_memory.store(true);
    auto* cos = reinterpret_cast<float*>(scratch + frequency_bytes);
    float* sin = cos + table;
    const int64_t last = (i + 1) * step < all.tokens ? (i + 1) * step : all.tokens;
    for (int64_t token = i * step; token < last; ++token) {
      k->ops->rope_angles(double(all.positions[token]) / all.scale, frequencies, pairs, all.interleaved, cos, sin);
      k->ops->rope({all.x + token * all.token_stride, all.head_stride, all.out + token * all.out_token_stride,
                    all.out_head_stride, all.heads, all.dim, all.rotary, all.interleaved, cos, sin});
    }
  });
  if (no_memory.load()) return {Code::no_memory, "no memory for scratch"};
  return {};
}

Status divergence(const Divergence& all, int limit) {
  const Kernels* k;
  if (const Status s = current_kernels(k); !s.ok()) return s;
  const int64_t step = at_least_one(kTaskElements / all.vocab);
  parallel_for((all.rows + step - 1) / step, limit, [&](int64_t i) {
    const int64_t last = (i + 1) * step < all.rows ? (i + 1) * step : all.rows;
    for (int64_t row = i * step; row < last; ++row) {
      k->ops->divergence(all.base + row * all.base_stride, all.test + row * all.test_stride, all.vocab, all.out[row]);
    }
  });
  return {};
}

}  // namespace kvant
