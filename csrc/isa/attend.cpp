// Attention, of one ISA.
#include "isa/unit.h"
#include "kernels/make_attend.h"

namespace kvant {

extern const AttendKernels KVANT_TABLE(attend);
constinit const AttendKernels KVANT_TABLE(attend) = make_attend<KVANT_ISA_TAG>();

}  // namespace kvant
