#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "errors.h"

namespace nb = nanobind;

void bind_runtime(nb::module_& m) {
  m.def("version", [] { return std::string(kvant_version()); });
  m.def("isas", [] {
    std::vector<std::tuple<std::string, bool>> all;
    for (int32_t i = 0; i < kvant_isa_count(); ++i) all.emplace_back(kvant_isa_name(i), kvant_isa_supported(i));
    return all;
  });
  m.def("isa_current", []() -> std::optional<std::string> {
    const char* name = kvant_isa_current();
    return name ? std::optional<std::string>(name) : std::nullopt;
  });
  m.def("isa_use", [](const std::string& name) { check(kvant_isa_use(name.c_str()), "isa.use"); }, nb::arg("name"));
  m.def("threads", [] { return kvant_threads(); });
  m.def("set_threads", [](int32_t n) { kvant_set_threads(n); }, nb::arg("n"));
  m.def(
      "allocate",
      [](size_t bytes) {
        void* p = kvant_buffer_alloc(bytes);
        if (!p) throw std::bad_alloc();
        struct Owned {
          void* p;
          size_t bytes;
        };
        auto* owned = new Owned{p, bytes};
        nb::capsule owner(owned, [](void* o) noexcept {
          auto* buffer = static_cast<Owned*>(o);
          kvant_buffer_free(buffer->p, buffer->bytes);
          delete buffer;
        });
        return nb::ndarray<nb::numpy, uint8_t, nb::ndim<1>>(p, {bytes}, owner);
      },
      nb::arg("bytes"));
}
