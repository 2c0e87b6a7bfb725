// The avx2 kernels; flags come from cmake/KvantIsa.cmake.
#include "simd/avx2.h"
#include "kernels/make_kernels.h"

namespace kvant {

extern const Kernels kernels_avx2;
constinit const Kernels kernels_avx2 = make_kernels<Avx2>("avx2");

}  // namespace kvant
