// One unit of one ISA: each .cpp that includes this is compiled once per row of cmake/KvantIsa.cmake,
// which defines KVANT_ISA_NAME, KVANT_ISA_TAG and KVANT_ISA_HEADER, with that row's flags.
#pragma once

#include KVANT_ISA_HEADER

#define KVANT_JOIN_(a, b, c) a##b##_##c
#define KVANT_JOIN(a, b, c) KVANT_JOIN_(a, b, c)
// The name of the table of this unit: kernels_codec_avx2.
#define KVANT_TABLE(room) KVANT_JOIN(kernels_, room, KVANT_ISA_NAME)
