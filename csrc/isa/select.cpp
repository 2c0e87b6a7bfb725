#include "isa/select.h"

#include <atomic>
#include <cstdlib>
#include <cstring>

#include "isa/detect.h"

namespace kvant {

// The tables of one ISA, from the objects that were compiled for it: its own products, the rest of
// `base`.
#define KVANT_KERNELS_ON(base, isa)                                                                \
  extern const MatmulKernels kernels_matmul_##isa;                                               \
  static constexpr Kernels kernels_##isa = {#isa, &kernels_codec_##base, &kernels_matmul_##isa,  \
                                            &kernels_ops_##base, &kernels_probe_##base, &kernels_attend_##base};
#define KVANT_KERNELS(isa)                                                                       \
  extern const CodecKernels kernels_codec_##isa;                                                 \
  extern const OpKernels kernels_ops_##isa;                                                      \
  extern const ProbeKernels kernels_probe_##isa;                                                 \
  extern const AttendKernels kernels_attend_##isa;                                               \
  KVANT_KERNELS_ON(isa, isa)

#if defined(__x86_64__)
KVANT_KERNELS(avx512vnni)
KVANT_KERNELS(avx2)
#elif defined(__aarch64__)
KVANT_KERNELS(neon_dotprod)
KVANT_KERNELS_ON(neon_dotprod, neon_i8mm)
#endif
KVANT_KERNELS(scalar)

namespace {

struct Isa {
  const Kernels* kernels;
  bool (*supported)();
};

constexpr Isa kIsas[] = {
#if defined(__x86_64__)
    {&kernels_avx512vnni, cpu_has_avx512vnni},
    {&kernels_avx2, cpu_has_avx2},
#elif defined(__aarch64__)
    {&kernels_neon_i8mm, cpu_has_neon_i8mm},
    {&kernels_neon_dotprod, cpu_has_neon_dotprod},
#endif
    {&kernels_scalar, [] { return true; }},
};
constexpr int kIsaCount = sizeof kIsas / sizeof kIsas[0];

std::atomic<const Kernels*> current{nullptr};

Status find_isa(const char* name, const Kernels*& found) {
  for (const Isa& isa : kIsas) {
    if (strcmp(isa.kernels->name, name) != 0) continue;
    if (!isa.supported()) return {Code::unsupported_isa, "this machine does not support that ISA"};
    found = isa.kernels;
    return {};
  }
  return {Code::unsupported_isa, "no ISA of that name in this build"};
}

}  // namespace

int isa_count() { return kIsaCount; }

const char* isa_name(int index) {
  return index >= 0 && index < kIsaCount ? kIsas[index].kernels->name : nullptr;
}

bool isa_supported(int index) { return index >= 0 && index < kIsaCount && kIsas[index].supported(); }

Status current_kernels(const Kernels*& kernels) {
  kernels = current.load(std::memory_order_acquire);
  if (kernels) return {};
  if (const char* name = getenv("KVANT_ISA"); name && *name) {
    if (const Status status = find_isa(name, kernels); !status.ok()) return status;
  } else {
    for (const Isa& isa : kIsas) {
      if (isa.supported()) {
        kernels = isa.kernels;
        break;
      }
    }
  }
  current.store(kernels, std::memory_order_release);
  return {};
}

Status use_isa(const char* name) {
  const Kernels* found = nullptr;
  if (const Status status = find_isa(name, found); !status.ok()) return status;
  current.store(found, std::memory_order_release);
  return {};
}

}  // namespace kvant
