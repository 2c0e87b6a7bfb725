// The scalar kernels; flags come from cmake/KvantIsa.cmake.
#include "simd/scalar.h"
#include "kernels/make_kernels.h"

namespace kvant {

extern const Kernels kernels_scalar;
constinit const Kernels kernels_scalar = make_kernels<Scalar>("scalar");

}  // namespace kvant
