#include "matmul/experts.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "matmul/tiles.h"
#include "runtime/pool.h"

namespace kvant {

void Sorted::place(Carver& carver) {
  begin_ = carver.take<int32_t>(routing_.experts + 2);
  pairs_ = carver.take<int32_t>(routing_.pairs());
  tokens_ = carver.take<int32_t>(routing_.pairs());
}

void Sorted::fill() {
  // Counted two places ahead: handing out places then leaves where each expert begins.
  memset(begin_, 0, size_t(routing_.experts + 2) * 4);
  for (int64_t p = 0; p < routing_.pairs(); ++p) ++begin_[routing_.ids[p] + 2];
  for (int64_t e = 2; e <= routing_.experts; ++e) begin_[e] += begin_[e - 1];
  for (int64_t p = 0; p < routing_.pairs(); ++p) {
    const int32_t at = begin_[routing_.ids[p] + 1]++;
    pairs_[at] = int32_t(p);
    tokens_[at] = int32_t(p / routing_.top);
  }
}

int64_t Sorted::groups(const Cut& cut) const {
  return std::min(routing_.experts, routing_.pairs()) + routing_.pairs() / cut.rows + 1;
}

void Sorted::cut(const Cut& cut, Columns& columns) const {
  columns.clear();
  for (int64_t e = 0; e < routing_.experts; ++e) columns.add(cut, begin_[e + 1] - begin_[e], int32_t(e));
}

Status matmul_experts(const ProductInput& in, bool per_slot, const Experts& experts, const Routing& routing, float* y,
                      int64_t y_stride, Inputs inputs, int limit) {
  const Kernels* kernels;
  if (const Status s = current_kernels(kernels); !s.ok()) return s;
  const MatmulKernels& k = *kernels->matmul;
  const Weights& w = experts.weights;
  const Product product(k, w, experts.stride, inputs);
  const Cut cut(k, product);
  Rows x(in, !product.floats);
  Sorted sorted(routing);
  Columns columns;
  uint8_t* panels;
  const bool enough = carve_call_scratch([&](Carver& carver) {
    x.place(carver);
    sorted.place(carver);
    columns.groups = carver.take<Group>(sorted.groups(cut) + 1);
    panels = carver.take<uint8_t>(Rows::panel_bytes(product, routing.pairs()));
  });
  if (!enough) return {Code::no_memory, "no memory for activations"};

  const int threads = double(routing.pairs() * w.cols) * double(w.rows) < kParallelProducts ? 1 : limit;
  x.fill(*kernels, threads);
  sorted.fill();
  sorted.cut(cut, columns);
  columns.rows = per_slot ? sorted.pairs() : sorted.tokens();
  x.arrange(k, product, columns, panels, threads);
  std::atomic<bool> no_memory{false};
  parallel_for(columns.tasks(), threads, [&](int64_t task) {
    const Group& group = columns.of_task(task);
    const TaskMemory memory = TaskMemory::get(k, product.floats, group.rows);
    if (!memory) return no_memory.store(true);
    const int64_t begin = (task - group.task) * group.tiles;
    const int64_t end = std::min<int64_t>(begin + group.tiles, w.tiles());
    multiply_tiles(k, product, panels, group, begin, end, {y, y_stride, sorted.pairs() + group.first}, memory);
  });
  if (no_memory.load()) return {Code::no_memory, "no memory for scratch"};
  return {};
}

}  // namespace kvant
