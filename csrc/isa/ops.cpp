// The operations around products, of one ISA.
#include "isa/unit.h"
#include "kernels/make_ops.h"

namespace kvant {

extern const OpKernels KVANT_TABLE(ops);
constinit const OpKernels KVANT_TABLE(ops) = make_ops<KVANT_ISA_TAG>();

}  // namespace kvant
