// The probes of one ISA.
#include "isa/unit.h"
#include "kernels/make_probe.h"

namespace kvant {

extern const ProbeKernels KVANT_TABLE(probe);
constinit const ProbeKernels KVANT_TABLE(probe) = make_probe<KVANT_ISA_TAG>();

}  // namespace kvant
