// The avx512vnni kernels; flags come from cmake/KvantIsa.cmake.
#include "simd/avx512vnni.h"
#include "kernels/make_kernels.h"

namespace kvant {

extern const Kernels kernels_avx512vnni;
constinit const Kernels kernels_avx512vnni = make_kernels<Avx512Vnni>("avx512vnni");

}  // namespace kvant
