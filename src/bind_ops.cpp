#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <optional>

#include "program.h"

namespace nb = nanobind;

namespace {

// Rows of floats whose last axis is contiguous, which the Python side has seen to.
using Rows = nb::ndarray<const float, nb::ndim<2>, nb::device::cpu>;
using OutRows = nb::ndarray<float, nb::ndim<2>, nb::device::cpu>;
using Heads = nb::ndarray<const float, nb::ndim<3>, nb::device::cpu>;
using OutHeads = nb::ndarray<float, nb::ndim<3>, nb::device::cpu>;
using Vector = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Positions = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

using Ids = nb::ndarray<int64_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

const float* data_or_null(const std::optional<Vector>& v) { return v ? v->data() : nullptr; }

}  // namespace

void bind_ops(nb::module_& m) {
  m.def(
      "rms_norm",
      [](Rows x, std::optional<Vector> weight, double eps, OutRows out, int32_t threads) {
        run_recorded("rms_norm", [=] {
          return kvant_rms_norm(x.data(), x.stride(0), data_or_null(weight), eps, int64_t(x.shape(0)),
                                int64_t(x.shape(1)), out.data(), out.stride(0), threads);
        });
      },
      nb::arg("x").noconvert(), nb::arg("weight").none().noconvert(), nb::arg("eps"), nb::arg("out").noconvert(),
      nb::arg("threads"));
  m.def(
      "softmax",
      [](Rows x, double scale, OutRows out, int32_t threads) {
        run_recorded("softmax", [=] {
          return kvant_softmax(x.data(), x.stride(0), scale, int64_t(x.shape(0)), int64_t(x.shape(1)), out.data(),
                               out.stride(0), threads);
        });
      },
      nb::arg("x").noconvert(), nb::arg("scale"), nb::arg("out").noconvert(), nb::arg("threads"));
  m.def(
      "activation_mul",
      [](int32_t activation, Rows gate, Rows up, OutRows out, int32_t threads) {
        run_recorded("activation_mul", [=] {
          return kvant_activation_mul(activation, gate.data(), gate.stride(0), up.data(), up.stride(0),
                                      int64_t(gate.shape(0)), int64_t(gate.shape(1)), out.data(), out.stride(0),
                                      threads);
        });
      },
      nb::arg("activation"), nb::arg("gate").noconvert(), nb::arg("up").noconvert(), nb::arg("out").noconvert(),
      nb::arg("threads"));
  m.def(
      "rope",
      [](Heads x, Positions positions, int32_t rotary, bool interleaved, double theta, double scale,
         std::optional<Vector> freq_factors, OutHeads out, int32_t threads) {
        run_recorded("rope", [=] {
          return kvant_rope(x.data(), x.stride(0), x.stride(1), positions.data(), int64_t(x.shape(0)),
                            int32_t(x.shape(1)), int32_t(x.shape(2)), rotary, interleaved, theta, scale,
                            data_or_null(freq_factors), out.data(), out.stride(0), out.stride(1), threads);
        });
      },
      nb::arg("x").noconvert(), nb::arg("positions").noconvert(), nb::arg("rotary"), nb::arg("interleaved"),
      nb::arg("theta"), nb::arg("scale"), nb::arg("freq_factors").none().noconvert(), nb::arg("out").noconvert(),
      nb::arg("threads"));
  m.def(
      "hadamard",
      [](Rows x, int32_t block, std::optional<Vector> signs, bool inverse, OutRows out, int32_t threads) {
        if (signs && int64_t(signs->shape(0)) != block) throw nb::value_error("signs do not fit");
        run_recorded("hadamard", [=] {
          return kvant_hadamard(x.data(), x.stride(0), int64_t(x.shape(0)), int64_t(x.shape(1)), block,
                                data_or_null(signs), inverse, out.data(), out.stride(0), threads);
        });
      },
      nb::arg("x").noconvert(), nb::arg("block"), nb::arg("signs").none().noconvert(), nb::arg("inverse"),
      nb::arg("out").noconvert(), nb::arg("threads"));
  m.def(
      "scale",
      [](OutRows x, double factor, int32_t threads) {
        run_recorded("scale", [=] {
          return kvant_scale(x.data(), x.stride(0), factor, int64_t(x.shape(0)), int64_t(x.shape(1)), x.data(),
                             x.stride(0), threads);
        });
      },
      nb::arg("x").noconvert(), nb::arg("factor"), nb::arg("threads"));
  m.def(
      "add",
      [](Rows x, OutRows y, int32_t threads) {
        run_recorded("add", [=] {
          const int64_t stride = x.shape(0) == 1 ? 0 : x.stride(0);
          return kvant_add(x.data(), stride, int64_t(y.shape(0)), int64_t(y.shape(1)), y.data(), y.stride(0), threads);
        });
      },
      nb::arg("x").noconvert(), nb::arg("y").noconvert(), nb::arg("threads"));
  m.def(
      "route",
      [](Rows scores, int32_t shares_of, Ids ids, OutRows shares, int32_t threads) {
        run_recorded("route", [=] {
          return kvant_route(scores.data(), scores.stride(0), int64_t(scores.shape(0)), int64_t(scores.shape(1)),
                             int64_t(ids.shape(1)), shares_of, ids.data(), shares.data(), threads);
        });
      },
      nb::arg("scores").noconvert(), nb::arg("shares_of"), nb::arg("ids").noconvert(), nb::arg("shares").noconvert(),
      nb::arg("threads"));
  m.def(
      "divergence",
      [](Rows base, Rows test, Bytes out, int32_t threads) {
        run("kl_divergence", [&] {
          return kvant_divergence(base.data(), base.stride(0), test.data(), test.stride(0), int64_t(base.shape(0)),
                                  int64_t(base.shape(1)), reinterpret_cast<kvant_row_divergence*>(out.data()),
                                  threads);
        });
      },
      nb::arg("base").noconvert(), nb::arg("test").noconvert(), nb::arg("out").noconvert(), nb::arg("threads"));
}
