// Runs every probe with every ISA of this machine and compares with sums computed plainly.
// Prints a line for each ISA; the exit status is the number of failures.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <initializer_list>

#include "capi/kvant.h"

int main() {
  constexpr int64_t kBytes = int64_t(4) << 20, kSome = kBytes - 8192;
  auto* a = static_cast<uint8_t*>(kvant_buffer_alloc(kBytes));
  auto* b = static_cast<uint8_t*>(kvant_buffer_alloc(kBytes));
  int failures = 0;
  for (int32_t i = 0; i < kvant_isa_count(); ++i) {
    if (!kvant_isa_supported(i) || kvant_isa_use(kvant_isa_name(i)) != KVANT_OK) continue;
    uint32_t wanted = 0, sum = 0;
    for (int64_t j = 0; j < kBytes; ++j) a[j] = uint8_t(j * 37 % 251);
    for (int64_t j = 0; j < kSome; j += 4) {
      uint32_t word;
      memcpy(&word, a + j, 4);
      wanted += word;
    }
    int wrong = 0;
    for (int streams = 1; streams <= 8; streams *= 2) {
      wrong += kvant_probe_read(a, kSome, streams, 2, &sum) != KVANT_OK || sum != wanted;
    }
    for (bool around : {false, true}) {
      memset(b, 1, kBytes);
      wrong += kvant_probe_copy(a, b, kSome, around, 2) != KVANT_OK || memcmp(a, b, kSome) || b[kSome] != 1;
    }
    wrong += kvant_probe_store(b, kSome, a, 100000, 2) != KVANT_OK || b[0] || b[kSome - 1] || b[kSome] != 1;
    for (int32_t kind : {KVANT_PROBE_INT8, KVANT_PROBE_F32}) {
      int64_t products = 0;
      double total = 0;
      wrong += kvant_probe_products(kind, 100, 3, 2, &products, &total) != KVANT_OK || total != double(products);
    }
    printf("%s %d\n", kvant_isa_name(i), wrong);
    failures += wrong;
  }
  kvant_buffer_free(a, kBytes);
  kvant_buffer_free(b, kBytes);
  return failures;
}
