// Gated feed-forward networks, down(activation(gate(x)) * up(x)): dense, and with experts.
//
// A task multiplies a few tiles of gate and the same of up and joins them while they are in the cache; what
// comes out is quantized once for each column. Bits are those of the three products and the
// activation one after the other.
#pragma once

#include "matmul/experts.h"

namespace kvant {

// gate and up are of one shape [hidden, cols], down [rows, hidden]; as many experts each.
struct Network {
  Experts gate, up, down;
  Activation activation;
};

// y: x.rows rows of down.weights.rows floats, y_stride floats apart. Expert 0 of the network.
Status ffn(const ProductInput& x, const Network& network, float* y, int64_t y_stride, Inputs inputs, int limit);

// For each token, outputs of its experts times weights [tokens][top], added in the order of the slots.
Status moe_ffn(const ProductInput& x, const Network& network, const Routing& routing, const float* weights, float* y,
               int64_t y_stride, Inputs inputs, int limit);

}  // namespace kvant
