#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include "errors.h"

namespace nb = nanobind;

namespace {

using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Ids = nb::ndarray<const int64_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Factors = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using FloatOut = nb::ndarray<float, nb::c_contig, nb::device::cpu>;

// Matrices one behind the other, and the array that owns their bytes.
struct Experts {
  Bytes data;
  int32_t format, packed;
  int64_t count, rows, cols;

  kvant_experts c() const {
    const auto bytes = int64_t(data.size());
    return {data.data(), bytes, count > 0 ? bytes / count : 0, format, packed, count, rows, cols};
  }
};

// Rows of floats, by address.
const void* address(uintptr_t x) { return reinterpret_cast<const void*>(x); }

}  // namespace

void bind_experts(nb::module_& m) {
  nb::class_<Experts>(m, "Experts")
      .def(
          "__init__",
          [](Experts* self, Bytes data, int32_t format, int64_t count, int64_t rows, int64_t cols, bool packed) {
            new (self) Experts{data, format, packed, count, rows, cols};
          },
          nb::arg("data").noconvert(), nb::arg("format"), nb::arg("count"), nb::arg("rows"), nb::arg("cols"),
          nb::arg("packed"))
      .def_ro("count", &Experts::count)
      .def_ro("rows", &Experts::rows)
      .def_ro("cols", &Experts::cols);
  m.def(
      "matmul_experts",
      [](uintptr_t x, int32_t type, int64_t stride, bool per_slot, const Experts& experts, Ids ids, FloatOut out,
         int32_t act, int32_t threads) {
        const kvant_experts e = experts.c();
        run("matmul_experts", [&] {
          return kvant_matmul_experts(address(x), type, int64_t(ids.shape(0)), stride, per_slot, &e, ids.data(),
                                      int64_t(ids.shape(1)), out.data(), e.rows, act, threads);
        });
      },
      nb::arg("x"), nb::arg("type"), nb::arg("stride"), nb::arg("per_slot"), nb::arg("experts"),
      nb::arg("ids").noconvert(), nb::arg("out").noconvert(), nb::arg("act"), nb::arg("threads"));
  m.def(
      "ffn",
      [](uintptr_t x, int32_t type, int64_t rows, int64_t stride, const Experts& gate, const Experts& up,
         const Experts& down, int32_t activation, FloatOut out, int32_t act, int32_t threads) {
        const kvant_experts g = gate.c(), u = up.c(), d = down.c();
        run("ffn", [&] {
          return kvant_ffn(address(x), type, rows, stride, &g, &u, &d, activation, out.data(), d.rows, act, threads);
        });
      },
      nb::arg("x"), nb::arg("type"), nb::arg("rows"), nb::arg("stride"), nb::arg("gate"), nb::arg("up"),
      nb::arg("down"), nb::arg("activation"), nb::arg("out").noconvert(), nb::arg("act"), nb::arg("threads"));
  m.def(
      "moe_ffn",
      [](uintptr_t x, int32_t type, int64_t stride, const Experts& gate, const Experts& up, const Experts& down,
         Ids ids, Factors weights, int32_t activation, FloatOut out, int32_t act, int32_t threads) {
        const kvant_experts g = gate.c(), u = up.c(), d = down.c();
        run("moe_ffn", [&] {
          return kvant_moe_ffn(address(x), type, int64_t(ids.shape(0)), stride, &g, &u, &d, ids.data(), weights.data(),
                               int64_t(ids.shape(1)), activation, out.data(), d.rows, act, threads);
        });
      },
      nb::arg("x"), nb::arg("type"), nb::arg("stride"), nb::arg("gate"), nb::arg("up"), nb::arg("down"),
      nb::arg("ids").noconvert(), nb::arg("weights").noconvert(), nb::arg("activation"), nb::arg("out").noconvert(),
      nb::arg("act"), nb::arg("threads"));
}
