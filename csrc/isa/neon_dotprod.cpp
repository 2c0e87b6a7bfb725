// The neon_dotprod kernels; flags come from cmake/KvantIsa.cmake.
#include "simd/neon_dotprod.h"
#include "kernels/make_kernels.h"

namespace kvant {

extern const Kernels kernels_neon_dotprod;
constinit const Kernels kernels_neon_dotprod = make_kernels<NeonDotprod>("neon_dotprod");

}  // namespace kvant
