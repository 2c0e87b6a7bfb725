// Fills the table of operations of one ISA. Included by isa/ops.cpp only.
#pragma once

#include "kernels/divergence.h"
#include "kernels/hadamard.h"
#include "kernels/ops.h"
#include "kernels/rope.h"

namespace kvant {

template <class Native>
constexpr OpKernels make_ops() {
  using V = Wide<Native>;
  return {&rms_norm<V>,
          &softmax<V>,
          &hadamard<V>,
          &scale<V>,
          &add<V>,
          // In the order of Activation.
          {&activation_mul<V, Silu>, &activation_mul<V, Gelu>, &activation_mul<V, GeluTanh>, &activation_mul<V, Relu>},
          &weighted_sum<V>,
          &rope_frequencies<V>,
          &rope_angles<V>,
          &rope<V>,
          &divergence<V>};
}

}  // namespace kvant
