#include "matmul/matmul.h"

#include <algorithm>
#include <atomic>

#include "matmul/tiles.h"
#include "runtime/pool.h"

namespace kvant {
namespace {

struct Plan {
  Product product;
  Columns columns;
  uint8_t* panels;
  int source;  // the plan whose panels these are
};

bool run_task(const MatmulKernels& k, const Plan& plan, const ProductOutput& out, int64_t task) {
  const Group& group = plan.columns.of_task(task);
  const TaskMemory memory = TaskMemory::get(k, plan.product.floats, group.rows);
  if (!memory) return false;
  const int64_t begin = (task - group.task) * group.tiles;
  const int64_t end = std::min<int64_t>(begin + group.tiles, out.weights.tiles());
  multiply_tiles(k, plan.product, plan.panels, group, begin, end, {out.y + group.first * out.row_stride, out.row_stride},
                 memory);
  return true;
}

}  // namespace

Status matmul(const ProductInput& in, const ProductOutput* products, int count, Inputs inputs, int limit) {
  const Kernels* kernels;
  if (const Status s = current_kernels(kernels); !s.ok()) return s;
  if (in.rows == 0 || count == 0) return {};
  const MatmulKernels& k = *kernels->matmul;
  Plan plans[kMostProducts];
  bool quantized = false;
  double work = 0;
  int64_t tasks = 0;
  for (int i = 0; i < count; ++i) {
    Plan& p = plans[i];
    p.product = Product(k, products[i].weights, 0, inputs);
    p.source = 0;
    while (!plans[p.source].product.same_panels(p.product)) ++p.source;
    quantized = quantized || !p.product.floats;
    work += double(in.rows * in.cols) * double(products[i].weights.rows);
  }
  Rows x(in, quantized);
  const bool enough = carve_call_scratch([&](Carver& carver) {
    x.place(carver);
    for (int i = 0; i < count; ++i) {
      Plan& p = plans[i];
      const Cut cut(k, p.product);
      p.columns.groups = carver.take<Group>(cut.groups(in.rows) + 1);
      p.panels = p.source < i ? plans[p.source].panels
                              : carver.take<uint8_t>(Rows::panel_bytes(p.product, in.rows));
    }
  });
  if (!enough) return {Code::no_memory, "no memory for activations"};

  const int threads = work < kParallelProducts ? 1 : limit;
  x.fill(*kernels, threads);
  for (int i = 0; i < count; ++i) {
    Plan& p = plans[i];
    p.columns.clear();
    p.columns.add(Cut(k, p.product), in.rows, 0);
    tasks += p.columns.tasks();
    if (p.source == i) x.arrange(k, p.product, p.columns, p.panels, threads);
  }
  std::atomic<bool> no_memory{false};
  parallel_for(tasks, threads, [&](int64_t task) {
    int i = 0;
    while (task >= plans[i].columns.tasks()) task -= plans[i++].columns.tasks();
    if (!run_task(k, plans[i], products[i], task)) no_memory.store(true);
  });
  if (no_memory.load()) return {Code::no_memory, "no memory for scratch"};
  return {};
}

}  // namespace kvant
