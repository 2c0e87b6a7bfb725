// Fills the table of probes of one ISA. Included by isa/probe.cpp only.
#pragma once

#include "kernels/probe.h"

namespace kvant {

template <class N>
constexpr ProbeKernels make_probe() {
  return {{&probe_read<N, 1>, &probe_read<N, 2>, &probe_read<N, 4>, &probe_read<N, 8>},
          &probe_copy<N>,
          &probe_store<N>,
          &probe_dot<N>,
          &probe_fma<N>,
          4 * N::kWidth * N::kProbeChains,
          N::kWidth * N::kProbeChains};
}

}  // namespace kvant
