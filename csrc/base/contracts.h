// Macros every room uses.
// KVANT_INLINE marks helpers that instruction-set TUs reach: they must never become a shared
// (weak) symbol, or the linker may keep the AVX-512 copy of a helper for every caller.
#pragma once

#define KVANT_INLINE static inline __attribute__((always_inline))
#define KVANT_MEMBER inline __attribute__((always_inline))
// For lambdas in functions that are no templates on V: [&](int l) KVANT_LAMBDA { ... }
#define KVANT_LAMBDA __attribute__((always_inline))

// Before a loop of a few steps over an array that is to stay in registers: left to itself the compiler
// unrolls long bodies too late, when the array is in memory for good.
#if defined(__clang__)
#define KVANT_UNROLL _Pragma("clang loop unroll(full)")
#else
#define KVANT_UNROLL _Pragma("GCC unroll 16")
#endif
