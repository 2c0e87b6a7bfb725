#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include "program.h"

namespace nb = nanobind;

namespace {

using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
// f32, or the bits of f16 and bf16.
using AnyFloats = nb::ndarray<nb::ro, nb::device::cpu>;
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
      [](AnyFloats x, int32_t type, int64_t stride, bool per_slot, Experts experts, Ids ids, FloatOut out,
         int32_t act, int32_t threads) {
        run_recorded("matmul_experts", [=] {
          const kvant_experts e = experts.c();
          return kvant_matmul_experts(x.data(), type, int64_t(ids.shape(0)), stride, per_slot, &e, ids.data(),
                                      int64_t(ids.shape(1)), out.data(), e.rows, act, threads);
        });
      },
      nb::arg("x").noconvert(), nb::arg("type"), nb::arg("stride"), nb::arg("per_slot"), nb::arg("experts"),
      nb::arg("ids").noconvert(), nb::arg("out").noconvert(), nb::arg("act"), nb::arg("threads"));
  m.def(
      "ffn",
      [](AnyFloats x, int32_t type, int64_t rows, int64_t stride, Experts gate, Experts up,
         Experts down, int32_t activation, FloatOut out, int32_t act, int32_t threads) {
        run_recorded("ffn", [=] {
          const kvant_experts g = gate.c(), u = up.c(), d = down.c();
          return kvant_ffn(x.data(), type, rows, stride, &g, &u, &d, activation, out.data(), d.rows, act, threads);
        });
      },
      nb::arg("x").noconvert(), nb::arg("type"), nb::arg("rows"), nb::arg("stride"), nb::arg("gate"), nb::arg("up"),
      nb::arg("down"), nb::arg("activation"), nb::arg("out").noconvert(), nb::arg("act"), nb::arg("threads"));
  m.def(
      "moe_ffn",
      [](AnyFloats x, int32_t type, int64_t stride, Experts gate, Experts up, Experts down,
         Ids ids, Factors weights, int32_t activation, FloatOut out, int32_t act, int32_t threads) {
        run_recorded("moe_ffn", [=] {
          const kvant_experts g = gate.c(), u = up.c(), d = down.c();
          return kvant_moe_ffn(x.data(), type, int64_t(ids.shape(0)), stride, &g, &u, &d, ids.data(), weights.data(),
                               int64_t(ids.shape(1)), activation, out.data(), d.rows, act, threads);
        });
      },
      nb::arg("x").noconvert(), nb::arg("type"), nb::arg("stride"), nb::arg("gate"), nb::arg("up"), nb::arg("down"),
      nb::arg("ids").noconvert(), nb::arg("weights").noconvert(), nb::arg("activation"), nb::arg("out").noconvert(),
      nb::arg("act"), nb::arg("threads"));
}
