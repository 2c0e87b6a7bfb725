#include "matmul/ffn.h"

#include <algorithm>
#include <atomic>

#include "matmul/tiles.h"
#include "runtime/pool.h"

namespace kvant {
namespace {

// Up to so many pairs, tasks of the last product are tiles of all chosen experts and add up the slots themselves.
constexpr int64_t kPairsAtOnce = 16;
// More tokens than need so much memory are taken in several runs, each with many columns for an expert.
constexpr int64_t kRunBytes = int64_t(256) << 20;

// A network applied to columns, which are rows of x, or pairs of a routing.
class Run {
 public:
  Run(const Kernels& kernels, const ProductInput& in, const Network& net, const Routing* routing, Inputs inputs,
      int limit)
      : kernels_(kernels), k_(*kernels.matmul), net_(net), routing_(routing),
        columns_(routing ? routing->pairs() : in.rows), hidden_cols_(net.down.weights.cols),
        gate_(k_, net.gate.weights, net.gate.stride, inputs), up_(k_, net.up.weights, net.up.stride, inputs),
        down_(k_, net.down.weights, net.down.stride, inputs),
        in_cut_(k_, gate_, std::max(gate_.unit, up_.unit)), out_cut_(k_, down_),
        sorted_(routing ? *routing : Routing{nullptr, 0, 1, 0}), x_(in, !gate_.floats || !up_.floats),
        hidden_rows_({nullptr, Float::f32, columns_, hidden_cols_, hidden_cols_}, !down_.floats) {
    const int64_t cols = net.gate.weights.cols;
    const double work = double(columns_ * hidden_cols_) * double(2 * cols + net.down.weights.rows);
    threads_ = work < kParallelProducts ? 1 : limit;
  }

  bool place();
  // hidden = activation(gate) * up, for all columns.
  void first_half();
  void second_half(float* y, int64_t y_stride) { multiply_down(y, y_stride, false); }
  void weighted_second_half(const float* weights, float* y, int64_t y_stride);
  Status status() const {
    return no_memory_.load() ? Status{Code::no_memory, "no memory for scratch"} : Status{};
  }

 private:
  bool at_once() const { return columns_ <= kPairsAtOnce; }
  void cut(const Cut& cut, Columns& columns);
  void fused_task(int64_t task);
  // Tiles of every group, joined: for few pairs.
  void joined_task(int64_t begin, int64_t end, const float* weights, float* y, int64_t y_stride);
  // Column i to row i of y, or to that of its pair.
  void multiply_down(float* y, int64_t stride, bool pairs);

  const Kernels& kernels_;
  const MatmulKernels& k_;
  const Network& net_;
  const Routing* routing_;
  int64_t columns_, hidden_cols_;
  Product gate_, up_, down_;
  Cut in_cut_, out_cut_;
  Sorted sorted_;
  Rows x_, hidden_rows_;
  int threads_;
  Columns in_, out_;
  uint8_t *gate_panels_ = nullptr, *up_panels_ = nullptr, *down_panels_ = nullptr;
  float *hidden_ = nullptr, *slots_ = nullptr;
  std::atomic<bool> no_memory_{false};
};

bool Run::place() {
  return carve_call_scratch([&](Carver& carver) {
    x_.place(carver);
    if (routing_) sorted_.place(carver);
    in_.groups = carver.take<Group>((routing_ ? sorted_.groups(in_cut_) : in_cut_.groups(columns_)) + 1);
    out_.groups = carver.take<Group>((routing_ ? sorted_.groups(out_cut_) : out_cut_.groups(columns_)) + 1);
    gate_panels_ = carver.take<uint8_t>(Rows::panel_bytes(gate_, columns_));
    up_panels_ = gate_.same_panels(up_) ? gate_panels_ : carver.take<uint8_t>(Rows::panel_bytes(up_, columns_));
    down_panels_ = carver.take<uint8_t>(Rows::panel_bytes(down_, columns_));
    hidden_ = carver.take<float>(columns_ * hidden_cols_);
    hidden_rows_.place(carver);
    slots_ = carver.take<float>(routing_ && !at_once() ? columns_ * net_.down.weights.rows : 0);
  });
}

void Run::cut(const Cut& cut, Columns& columns) {
  if (routing_) return sorted_.cut(cut, columns);
  columns.clear();
  columns.add(cut, columns_, 0);
}

void Run::first_half() {
  x_.fill(kernels_, threads_);
  if (routing_) sorted_.fill();
  cut(in_cut_, in_);
  if (routing_) in_.rows = sorted_.tokens();
  x_.arrange(k_, gate_, in_, gate_panels_, threads_);
  if (up_panels_ != gate_panels_) x_.arrange(k_, up_, in_, up_panels_, threads_);
  parallel_for(in_.tasks(), threads_, [&](int64_t task) { fused_task(task); });

  hidden_rows_.use(hidden_);
  hidden_rows_.fill(kernels_, threads_);
  cut(out_cut_, out_);
  hidden_rows_.arrange(k_, down_, out_, down_panels_, threads_);
}

void Run::fused_task(int64_t task) {
  const Group& group = in_.of_task(task);
  const int64_t begin = (task - group.task) * group.tiles;
  const int64_t end = std::min<int64_t>(begin + group.tiles, in_cut_.tiles);
  const int64_t first = kTileRows * begin, width = kTileRows * (end - begin);
  const TaskMemory memory = TaskMemory::get(k_, gate_.floats || up_.floats, group.rows, 2 * group.rows * width);
  if (!memory) return no_memory_.store(true);
  float *gate = memory.extra, *up = gate + group.rows * width;
  multiply_tiles(k_, gate_, gate_panels_, group, begin, end, {gate, width, nullptr, first}, memory);
  multiply_tiles(k_, up_, up_panels_, group, begin, end, {up, width, nullptr, first}, memory);
  const auto join = kernels_.ops->activation_mul[int(net_.activation)];
  const int64_t count = std::min(hidden_cols_ - first, width);
  for (int64_t j = 0; j < group.rows; ++j) {
    join(gate + j * width, up + j * width, hidden_ + (group.first + j) * hidden_cols_ + first, count);
  }
}

void Run::multiply_down(float* y, int64_t stride, bool pairs) {
  parallel_for(out_.tasks(), threads_, [&](int64_t task) {
    const Group& group = out_.of_task(task);
    const TaskMemory memory = TaskMemory::get(k_, down_.floats, group.rows);
    if (!memory) return no_memory_.store(true);
    const int64_t begin = (task - group.task) * group.tiles;
    const int64_t end = std::min<int64_t>(begin + group.tiles, out_cut_.tiles);
    const Target by_pair = {y, stride, sorted_.pairs() + group.first}, in_order = {y + group.first * stride, stride};
    multiply_tiles(k_, down_, down_panels_, group, begin, end, pairs ? by_pair : in_order, memory);
  });
}

void Run::joined_task(int64_t begin, int64_t end, const float* weights, float* y, int64_t y_stride) {
  const int64_t first = kTileRows * begin, width = kTileRows * (end - begin), top = routing_->top;
  const TaskMemory memory = TaskMemory::get(k_, down_.floats, columns_, columns_ * width);
  if (!memory) return no_memory_.store(true);
  for (int64_t g = 0; g < out_.count; ++g) {
    const Group& group = out_.groups[g];
    multiply_tiles(k_, down_, down_panels_, group, begin, end,
                   {memory.extra, width, sorted_.pairs() + group.first, first}, memory);
  }
  const int64_t count = std::min(net_.down.weights.rows - first, width);
  for (int64_t t = 0; t < routing_->tokens; ++t) {
    kernels_.ops->weighted_sum(memory.extra + t * top * width, width, weights + t * top, top, y + t * y_stride + first,
                               count);
  }
}

void Run::weighted_second_half(const float* weights, float* y, int64_t y_stride) {
  const int64_t rows = net_.down.weights.rows, top = routing_->top;
  if (at_once()) {
    const int64_t step = out_cut_.joined_tiles(columns_);
    return parallel_for((out_cut_.tiles + step - 1) / step, threads_, [&](int64_t i) {
      joined_task(i * step, std::min((i + 1) * step, out_cut_.tiles), weights, y, y_stride);
    });
  }
  multiply_down(slots_, rows, true);
  parallel_for(routing_->tokens, threads_, [&](int64_t t) {
    kernels_.ops->weighted_sum(slots_ + t * top * rows, rows, weights + t * top, top, y + t * y_stride, rows);
  });
}

}  // namespace

Status ffn(const ProductInput& x, const Network& network, float* y, int64_t y_stride, Inputs inputs, int limit) {
  const Kernels* kernels;
  if (const Status s = current_kernels(kernels); !s.ok()) return s;
  Run run(*kernels, x, network, nullptr, inputs, limit);
  if (!run.place()) return {Code::no_memory, "no memory for activations"};
  run.first_half();
  run.second_half(y, y_stride);
  return run.status();
}

Status moe_ffn(const ProductInput& x, const Network& network, const Routing& routing, const float* weights, float* y,
               int64_t y_stride, Inputs inputs, int limit) {
  const Kernels* kernels;
  if (const Status s = current_kernels(kernels); !s.ok()) return s;
  // Activations of a token as floats, in eight bits and in records.
  const int64_t token = x.cols * 6 + routing.top * (x.cols * 3 + network.down.weights.cols * 8 + network.down.weights.rows * 4);
  const int64_t most = std::max<int64_t>(kRunBytes / std::max<int64_t>(token, 1), 1);
  const int64_t runs = (routing.tokens + most - 1) / most, step = runs ? (routing.tokens + runs - 1) / runs : 1;
  for (int64_t first = 0; first < routing.tokens; first += step) {
    const int64_t tokens = std::min(routing.tokens - first, step);
    const auto* at = static_cast<const uint8_t*>(x.x) + first * x.row_stride * (x.type == Float::f32 ? 4 : 2);
    const Routing some = {routing.ids + first * routing.top, tokens, routing.top, routing.experts};
    Run run(*kernels, {at, x.type, tokens, x.cols, x.row_stride}, network, &some, inputs, limit);
    if (!run.place()) return {Code::no_memory, "no memory for activations"};
    run.first_half();
    run.weighted_second_half(weights + first * routing.top, y + first * y_stride, y_stride);
    if (const Status s = run.status(); !s.ok()) return s;
  }
  return {};
}

}  // namespace kvant
