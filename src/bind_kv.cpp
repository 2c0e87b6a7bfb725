#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <optional>

#include "program.h"

namespace nb = nanobind;

namespace {

using Heads = nb::ndarray<const float, nb::ndim<3>, nb::device::cpu>;
using OutHeads = nb::ndarray<float, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
// [heads, pages, dim, 64] of keys, [heads, pages, 64, width] of values, each number as its bytes.
using Pages = nb::ndarray<uint8_t, nb::ndim<5>, nb::c_contig, nb::device::cpu>;
using Vector = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

using Place = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// The arrays of one layer, and the token that stands in their first place.
struct KvPages {
  Pages k, v;
  int32_t value_dim;
  int64_t first;

  kvant_kv_pages c() const {
    const int32_t type = k.shape(4) == 4 ? KVANT_F32 : KVANT_F16;
    return {k.data(), v.data(), type, int32_t(k.shape(0)), int32_t(k.shape(2)), value_dim, int64_t(k.shape(1))};
  }
};

// What the Python side has checked; memory depends on it.
template <class Array>
void fits(const Array& x, size_t tokens, int32_t heads, int32_t dim) {
  const bool same = x.shape(0) == tokens && int64_t(x.shape(1)) == heads && int64_t(x.shape(2)) == dim;
  if (!same || (tokens > 0 && dim > 1 && x.stride(2) != 1)) throw nb::value_error("an array does not fit the pages");
}

}  // namespace

void bind_kv(nb::module_& m) {
  nb::class_<KvPages>(m, "KvPages")
      .def(
          "__init__",
          [](KvPages* self, Pages k, Pages v, int32_t value_dim, int64_t first) {
            new (self) KvPages{k, v, value_dim, first};
          },
          nb::arg("k").noconvert(), nb::arg("v").noconvert(), nb::arg("value_dim"), nb::arg("first"));
  m.def(
      "kv_append",
      [](KvPages pages, Place length, Heads k, Heads v, int32_t threads) {
        const kvant_kv_pages c = pages.c();
        fits(k, k.shape(0), c.heads, c.dim);
        fits(v, k.shape(0), c.heads, c.value_dim);
        run_recorded("kv_append", [=] {
          return kvant_kv_append(&c, length(0) - pages.first, int64_t(k.shape(0)), k.data(), k.stride(0), k.stride(1), v.data(),
                                 v.stride(0), v.stride(1), threads);
        });
      },
      nb::arg("pages"), nb::arg("length").noconvert(), nb::arg("k").noconvert(), nb::arg("v").noconvert(), nb::arg("threads"));
  m.def(
      "kv_attend",
      [](KvPages pages, Place length, Heads q, int64_t window, float scale, std::optional<Vector> sinks,
         OutHeads out, int32_t threads) {
        const kvant_kv_pages c = pages.c();
        fits(q, q.shape(0), int32_t(q.shape(1)), c.dim);
        fits(out, q.shape(0), int32_t(q.shape(1)), c.value_dim);
        if (sinks && sinks->shape(0) != q.shape(1)) throw nb::value_error("sinks do not fit");
        run_recorded("kv_attend", [=] {
          return kvant_kv_attend(&c, length(0) - pages.first, int64_t(q.shape(0)), q.data(), q.stride(0), q.stride(1),
                                 int32_t(q.shape(1)), window, scale, sinks ? sinks->data() : nullptr, out.data(),
                                 threads);
        });
      },
      nb::arg("pages"), nb::arg("length").noconvert(), nb::arg("q").noconvert(), nb::arg("window"), nb::arg("scale"),
      nb::arg("sinks").none().noconvert(), nb::arg("out").noconvert(), nb::arg("threads"));
}
