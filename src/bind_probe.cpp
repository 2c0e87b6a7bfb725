#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>

#include <utility>

#include "errors.h"

namespace nb = nanobind;

// Addresses, because the probes must be able to use memory that NumPy did not allocate.
void bind_probe(nb::module_& m) {
  m.def(
      "probe_read",
      [](uintptr_t data, int64_t bytes, int32_t streams, int32_t threads) {
        uint32_t sum = 0;
        run("probe_read", [&] {
          return kvant_probe_read(reinterpret_cast<const void*>(data), bytes, streams, threads, &sum);
        });
        return sum;
      },
      nb::arg("data"), nb::arg("bytes"), nb::arg("streams"), nb::arg("threads"));
  m.def(
      "probe_copy",
      [](uintptr_t from, uintptr_t to, int64_t bytes, bool around, int32_t threads) {
        run("probe_copy", [&] {
          return kvant_probe_copy(reinterpret_cast<const void*>(from), reinterpret_cast<void*>(to), bytes, around,
                                  threads);
        });
      },
      nb::arg("source"), nb::arg("target"), nb::arg("bytes"), nb::arg("around"), nb::arg("threads"));
  m.def(
      "probe_store",
      [](uintptr_t to, int64_t bytes, uintptr_t from, int64_t from_bytes, int32_t threads) {
        run("probe_store", [&] {
          return kvant_probe_store(reinterpret_cast<void*>(to), bytes, reinterpret_cast<const void*>(from),
                                   from_bytes, threads);
        });
      },
      nb::arg("target"), nb::arg("bytes"), nb::arg("source"), nb::arg("source_bytes"), nb::arg("threads"));
  m.def(
      "probe_products",
      [](int32_t kind, int64_t steps, int64_t tasks, int32_t threads) {
        int64_t products = 0;
        double sum = 0;
        run("probe_products", [&] {
          return kvant_probe_products(kind, steps, tasks, threads, &products, &sum);
        });
        return std::pair(products, sum);
      },
      nb::arg("kind"), nb::arg("steps"), nb::arg("tasks"), nb::arg("threads"));
  m.def(
      "probe_ticks",
      [](int64_t steps) {
        nb::gil_scoped_release release;
        kvant_probe_ticks(steps);
      },
      nb::arg("steps"));
}
