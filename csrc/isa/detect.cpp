#include "isa/detect.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace kvant {

bool cpu_has_avx2() {
#if defined(__x86_64__)
  // clang's __builtin_cpu_supports does not know f16c. Asked once: hypervisors trap the instruction.
  static const bool f16c = [] {
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
  }();
  return f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  return false;
#endif
}

bool cpu_has_avx512vnni() {
#if defined(__x86_64__)
  return cpu_has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni");
#else
  return false;
#endif
}

#if defined(__aarch64__) && defined(__APPLE__)
static bool system_says(const char* feature) {
  int has = 0;
  size_t size = sizeof has;
  return sysctlbyname(feature, &has, &size, nullptr, 0) == 0 && has;
}
#endif

bool cpu_has_neon_dotprod() {
#if defined(__aarch64__) && defined(__linux__)
  return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#elif defined(__aarch64__) && defined(__APPLE__)
  return system_says("hw.optional.arm.FEAT_DotProd");
#else
  return false;
#endif
}

bool cpu_has_neon_i8mm() {
#if defined(__aarch64__) && defined(__linux__)
  // Not in the headers of older systems.
  constexpr unsigned long kI8mm = 1UL << 13;
  return cpu_has_neon_dotprod() && (getauxval(AT_HWCAP2) & kI8mm) != 0;
#elif defined(__aarch64__) && defined(__APPLE__)
  return cpu_has_neon_dotprod() && system_says("hw.optional.arm.FEAT_I8MM");
#else
  return false;
#endif
}

}  // namespace kvant
