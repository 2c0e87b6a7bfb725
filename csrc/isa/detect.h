// The one place that asks the processor what it can do.
#pragma once

namespace kvant {

bool cpu_has_avx2();        // AVX2, FMA, F16C
bool cpu_has_avx512vnni();  // AVX-512 F, BW, DQ, VL, VNNI
bool cpu_has_neon_dotprod();
bool cpu_has_neon_i8mm();   // and dot products

}  // namespace kvant
