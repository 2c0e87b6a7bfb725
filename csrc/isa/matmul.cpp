// The matrix product kernels of one ISA.
#include "isa/unit.h"
#include "kernels/make_matmul.h"

namespace kvant {

extern const MatmulKernels KVANT_TABLE(matmul);
constinit const MatmulKernels KVANT_TABLE(matmul) = make_matmul<KVANT_ISA_TAG>();

}  // namespace kvant
