// The front door of matrix products.
#include "capi/checks.h"
#include "matmul/ffn.h"
#include "matmul/matmul.h"

using namespace kvant;

namespace {

constexpr int64_t kMostRows = INT32_MAX - 2;

Status check_inputs(int32_t act) {
  if (act == KVANT_ACTIVATION_Q8 || act == KVANT_ACTIVATION_F32) return {};
  return {Code::bad_format, "no such kind of activations"};
}

// Rows of x, and that y, of which there may be more rows, has none of their memory.
Status check_rows(const ProductInput& x, int64_t rows, int64_t cols, const float* y, int64_t y_stride) {
  if (const Status s = check_matrix(0, x.rows, x.cols, int32_t(x.type)); !s.ok()) return s;
  if (const Status s = check_matrix(0, rows, cols, KVANT_F32); !s.ok()) return s;
  if (const Status s = check_aligned(x.x, int32_t(x.type)); !s.ok()) return s;
  if (const Status s = check_aligned(y, KVANT_F32); !s.ok()) return s;
  if (y_stride < cols) return {Code::bad_shape, "rows of y overlap"};
  const int64_t size = x.type == Float::f32 ? 4 : 2;
  if (Extent(y, rows, y_stride * 4, cols * 4).touches({x.x, x.rows, x.row_stride * size, x.cols * size})) {
    return {Code::bad_shape, "y overlaps x"};
  }
  return {};
}

Weights weights_of(const kvant_experts& e) { return {e.weights, e.format, e.rows, e.cols, e.packed != 0}; }

Experts experts_of(const kvant_experts& e) { return {weights_of(e), e.count, e.stride}; }

Status check_experts(const kvant_experts& e, const Extent& y) {
  if (const Status s = check_matrix(e.format, e.rows, e.cols, KVANT_F32); !s.ok()) return s;
  if (e.count < 0 || e.count > kMostRows) return {Code::bad_shape, "wrong number of experts"};
  const Weights w = weights_of(e);
  const int64_t bytes = w.packed ? w.packed_bytes() : w.rows * w.row_bytes;
  if (e.packed) {
    if (const Status s = check_packed(e.weights, bytes); !s.ok()) return s;
    if (e.stride % 64) return {Code::bad_alignment, "packed experts are not a multiple of 64 bytes apart"};
  }
  if (e.count > 0 && (e.weight_bytes < bytes || e.stride < 0)) {
    return {Code::bad_shape, "weights have the wrong number of bytes"};
  }
  if (e.count > 1 && e.stride > (e.weight_bytes - bytes) / (e.count - 1)) {
    return {Code::bad_shape, "weights have the wrong number of bytes"};
  }
  if (y.touches({e.weights, 1, 0, e.weight_bytes})) return {Code::bad_shape, "y overlaps weights"};
  return {};
}

Status check_network(const Network& n, const kvant_experts* const* all, const Extent& y) {
  for (int i = 0; i < 3; ++i) {
    if (const Status s = check_experts(*all[i], y); !s.ok()) return s;
  }
  const Weights &gate = n.gate.weights, &up = n.up.weights, &down = n.down.weights;
  if (gate.rows != up.rows || gate.cols != up.cols || gate.rows != down.cols) {
    return {Code::bad_shape, "gate, up and down do not fit together"};
  }
  if (n.gate.count != n.up.count || n.gate.count != n.down.count) {
    return {Code::bad_shape, "gate, up and down have different numbers of experts"};
  }
  if (int(n.activation) < 0 || int(n.activation) >= kActivationCount) return {Code::bad_format, "no such activation"};
  return {};
}

Status check_pairs(int64_t tokens, int64_t top) {
  if (tokens < 0 || top < 0) return {Code::bad_shape, "negative number of tokens or slots"};
  if (top > 0 && tokens > kMostRows / top) return {Code::bad_shape, "too many rows"};
  return {};
}

Status check_ids(const Routing& r, const Extent& y) {
  for (int64_t i = 0; i < r.pairs(); ++i) {
    if (r.ids[i] < 0 || r.ids[i] >= r.experts) return {Code::bad_shape, "an id names no expert"};
  }
  if (y.touches({r.ids, 1, 0, r.pairs() * 8})) return {Code::bad_shape, "y overlaps ids"};
  return {};
}

}  // namespace

extern "C" {

KVANT_EXPORT int64_t kvant_packed_bytes(int32_t format, int64_t rows, int64_t cols) {
  if (const Status s = check_matrix(format, rows, cols, KVANT_F32); !s.ok()) return report(s);
  return Weights(nullptr, format, rows, cols, true).packed_bytes();
}

KVANT_EXPORT int32_t kvant_pack(int32_t format, const uint8_t* data, int64_t rows, int64_t cols, uint8_t* out,
                                int64_t out_bytes, int32_t threads) {
  KVANT_CHECK(check_matrix(format, rows, cols, KVANT_F32));
  const Weights w(data, format, rows, cols, false);
  if (out_bytes != w.packed_bytes()) return fail(Code::bad_shape, "output has the wrong number of bytes");
  KVANT_CHECK(check_packed(out, out_bytes));
  return report(pack(w, out, threads));
}

KVANT_EXPORT int32_t kvant_unpack(int32_t format, const uint8_t* packed, int64_t rows, int64_t cols, uint8_t* out,
                                  int64_t out_bytes, int32_t threads) {
  KVANT_CHECK(check_matrix(format, rows, cols, KVANT_F32));
  const Weights w(packed, format, rows, cols, true);
  if (out_bytes != rows * w.row_bytes) return fail(Code::bad_shape, "output has the wrong number of bytes");
  KVANT_CHECK(check_packed(packed, w.packed_bytes()));
  return report(unpack(w, out, threads));
}

KVANT_EXPORT int32_t kvant_matmul(const void* x, int32_t type, int64_t x_rows, int64_t cols, int64_t x_stride,
                                  const kvant_product* products, int32_t count, int32_t activation, int32_t threads) {
  if (count < 0 || count > kMostProducts) return fail(Code::bad_shape, "from 0 to 16 products in a call");
  KVANT_CHECK(check_inputs(activation));
  KVANT_CHECK(check_matrix(0, x_rows, cols, type));
  if (x_rows > kMostRows) return fail(Code::bad_shape, "too many rows");
  KVANT_CHECK(check_aligned(x, type));
  ProductOutput out[kMostProducts];
  for (int32_t i = 0; i < count; ++i) {
    const kvant_product& p = products[i];
    KVANT_CHECK(check_matrix(p.format, p.rows, cols, KVANT_F32));
    KVANT_CHECK(check_matrix(0, x_rows, p.rows, KVANT_F32));
    out[i] = {Weights(p.weights, p.format, p.rows, cols, p.packed != 0), p.y, p.y_stride};
    const Weights& w = out[i].weights;
    if (p.weight_bytes != (w.packed ? w.packed_bytes() : w.rows * w.row_bytes)) {
      return fail(Code::bad_shape, "weights have the wrong number of bytes");
    }
    if (w.packed) KVANT_CHECK(check_packed(p.weights, p.weight_bytes));
    KVANT_CHECK(check_aligned(p.y, KVANT_F32));
    if (p.y_stride < p.rows) return fail(Code::bad_shape, "rows of y overlap");
    const Extent y = {p.y, x_rows, p.y_stride * 4, p.rows * 4};
    const int64_t size = type == KVANT_F32 ? 4 : 2;
    bool apart = !y.touches({x, x_rows, x_stride * size, cols * size}) && !y.touches({p.weights, 1, 0, p.weight_bytes});
    for (int32_t j = 0; j < i; ++j) {
      apart = apart && !y.touches({products[j].y, x_rows, products[j].y_stride * 4, products[j].rows * 4});
    }
    if (!apart) return fail(Code::bad_shape, "y overlaps x, weights or another y");
  }
  return report(matmul({x, Float(type), x_rows, cols, x_stride}, out, count, Inputs(activation), threads));
}

KVANT_EXPORT int32_t kvant_matmul_experts(const void* x, int32_t type, int64_t tokens, int64_t x_stride,
                                          int32_t x_per_slot, const kvant_experts* experts, const int64_t* ids,
                                          int64_t top, float* y, int64_t y_stride, int32_t act, int32_t threads) {
  KVANT_CHECK(check_inputs(act));
  KVANT_CHECK(check_pairs(tokens, top));
  const Routing routing = {ids, tokens, top, experts->count};
  const ProductInput in = {x, Float(type), x_per_slot ? routing.pairs() : tokens, experts->cols, x_stride};
  KVANT_CHECK(check_rows(in, routing.pairs(), experts->rows, y, y_stride));
  const Extent out = {y, routing.pairs(), y_stride * 4, experts->rows * 4};
  KVANT_CHECK(check_experts(*experts, out));
  KVANT_CHECK(check_ids(routing, out));
  return report(matmul_experts(in, x_per_slot != 0, experts_of(*experts), routing, y, y_stride, Inputs(act), threads));
}

KVANT_EXPORT int32_t kvant_ffn(const void* x, int32_t type, int64_t rows, int64_t x_stride, const kvant_experts* gate,
                               const kvant_experts* up, const kvant_experts* down, int32_t activation, float* y,
                               int64_t y_stride, int32_t act, int32_t threads) {
  KVANT_CHECK(check_inputs(act));
  KVANT_CHECK(check_pairs(rows, 1));
  const ProductInput in = {x, Float(type), rows, gate->cols, x_stride};
  KVANT_CHECK(check_rows(in, rows, down->rows, y, y_stride));
  const Network network = {experts_of(*gate), experts_of(*up), experts_of(*down), Activation(activation)};
  const kvant_experts* all[] = {gate, up, down};
  KVANT_CHECK(check_network(network, all, {y, rows, y_stride * 4, down->rows * 4}));
  if (gate->count != 1) return fail(Code::bad_shape, "gate, up and down must be one matrix each");
  return report(ffn(in, network, y, y_stride, Inputs(act), threads));
}

KVANT_EXPORT int32_t kvant_moe_ffn(const void* x, int32_t type, int64_t tokens, int64_t x_stride,
                                   const kvant_experts* gate, const kvant_experts* up, const kvant_experts* down,
                                   const int64_t* ids, const float* weights, int64_t top, int32_t activation, float* y,
                                   int64_t y_stride, int32_t act, int32_t threads) {
  KVANT_CHECK(check_inputs(act));
  KVANT_CHECK(check_pairs(tokens, top));
  const ProductInput in = {x, Float(type), tokens, gate->cols, x_stride};
  KVANT_CHECK(check_rows(in, tokens, down->rows, y, y_stride));
  KVANT_CHECK(check_aligned(weights, KVANT_F32));
  const Network network = {experts_of(*gate), experts_of(*up), experts_of(*down), Activation(activation)};
  const kvant_experts* all[] = {gate, up, down};
  const Extent out = {y, tokens, y_stride * 4, down->rows * 4};
  KVANT_CHECK(check_network(network, all, out));
  const Routing routing = {ids, tokens, top, gate->count};
  KVANT_CHECK(check_ids(routing, out));
  if (out.touches({weights, 1, 0, routing.pairs() * 4})) return fail(Code::bad_shape, "y overlaps the router's weights");
  return report(moe_ffn(in, network, routing, weights, y, y_stride, Inputs(act), threads));
}

}  // extern "C"
