// Fills the table of attention of one ISA. Included by isa/attend.cpp only.
#pragma once

#include "kernels/attend.h"

namespace kvant {

template <class Native>
constexpr AttendKernels make_attend() {
  using V = Wide<Native>;
  return {{&attend_chunk<V, float>, &attend_chunk<V, uint16_t>},
          &merge_states<V>,
          &finish_state<V>,
          {&append_token<V, float>, &append_token<V, uint16_t>}};
}

}  // namespace kvant
