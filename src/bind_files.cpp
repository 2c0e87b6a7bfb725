#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>

#include <utility>

#include "errors.h"

namespace nb = nanobind;

using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

void bind_files(nb::module_& m) {
  m.def(
      "scan_strings",
      [](Bytes data, int64_t offset, int64_t count) {
        bool utf8 = true;
        const int64_t end = kvant_scan_strings(data.data(), int64_t(data.size()), offset, count, &utf8, nullptr);
        return std::pair(end, end >= 0 && utf8);
      },
      nb::arg("data").noconvert(), nb::arg("offset"), nb::arg("count"));
  m.def(
      "string_offsets",
      [](Bytes data, int64_t offset, int64_t count) {
        // Eight bytes of length each: more strings than that cannot be there.
        if (count < 0 || uint64_t(count) > data.size() / 8) throw nb::value_error("strings run past the buffer");
        auto* offsets = new uint64_t[size_t(count) + 1];
        nb::capsule owner(offsets, [](void* p) noexcept { delete[] static_cast<uint64_t*>(p); });
        bool utf8 = true;
        if (kvant_scan_strings(data.data(), int64_t(data.size()), offset, count, &utf8, offsets) < 0) {
          throw nb::value_error("strings run past the buffer");
        }
        return nb::ndarray<nb::numpy, uint64_t, nb::ndim<1>>(offsets, {size_t(count) + 1}, owner);
      },
      nb::arg("data").noconvert(), nb::arg("offset"), nb::arg("count"));
}
