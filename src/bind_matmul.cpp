#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <vector>

#include "program.h"

namespace nb = nanobind;

namespace {

using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Out = nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
// f32, or the bits of f16 and bf16.
using AnyFloats = nb::ndarray<nb::ro, nb::device::cpu>;
using Floats = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
using FloatOut = nb::ndarray<float, nb::c_contig, nb::device::cpu>;

// The C ABI takes no more at once.
constexpr int kMostProducts = 16;

// Weights and the array that owns their bytes.
struct Matrix {
  Bytes data;
  int32_t format, packed;
  int64_t rows, cols;

  kvant_product product(float* y) const {
    return {data.data(), int64_t(data.size()), format, packed, rows, y, rows};
  }
};

}  // namespace

void bind_matmul(nb::module_& m) {
  nb::class_<Matrix>(m, "Matrix")
      .def(
          "__init__",
          [](Matrix* self, Bytes data, int32_t format, int64_t rows, int64_t cols, bool packed) {
            new (self) Matrix{data, format, packed, rows, cols};
          },
          nb::arg("data").noconvert(), nb::arg("format"), nb::arg("rows"), nb::arg("cols"), nb::arg("packed"))
      .def_ro("rows", &Matrix::rows)
      .def_ro("cols", &Matrix::cols);
  m.def(
      "packed_bytes",
      [](int32_t format, int64_t rows, int64_t cols) {
        const int64_t bytes = kvant_packed_bytes(format, rows, cols);
        if (bytes < 0) check(int32_t(bytes), "pack");
        return bytes;
      },
      nb::arg("format"), nb::arg("rows"), nb::arg("cols"));
  m.def(
      "pack",
      [](int32_t format, Bytes data, int64_t rows, int64_t cols, Out out, int32_t threads) {
        run("pack", [&] {
          return kvant_pack(format, data.data(), rows, cols, out.data(), int64_t(out.size()), threads);
        });
      },
      nb::arg("format"), nb::arg("data").noconvert(), nb::arg("rows"), nb::arg("cols"), nb::arg("out").noconvert(),
      nb::arg("threads"));
  m.def(
      "unpack",
      [](int32_t format, Bytes packed, int64_t rows, int64_t cols, Out out, int32_t threads) {
        run("unpack", [&] {
          return kvant_unpack(format, packed.data(), rows, cols, out.data(), int64_t(out.size()), threads);
        });
      },
      nb::arg("format"), nb::arg("packed").noconvert(), nb::arg("rows"), nb::arg("cols"), nb::arg("out").noconvert(),
      nb::arg("threads"));
  // One product of contiguous f32 rows: the short way.
  m.def(
      "matmul",
      [](Floats x, Matrix w, FloatOut out, int32_t activation, int32_t threads) {
        run_recorded("matmul", [=] {
          const kvant_product product = w.product(out.data());
          const int64_t rows = w.rows > 0 ? int64_t(out.size()) / w.rows : 0;
          return kvant_matmul(x.data(), KVANT_F32, rows, w.cols, w.cols, &product, 1, activation, threads);
        });
      },
      nb::arg("x").noconvert(), nb::arg("w"), nb::arg("out").noconvert(), nb::arg("activation"), nb::arg("threads"));
  // Any rows of floats and any number of products, on behalf of a function.
  m.def(
      "matmul_many",
      [](const char* function, AnyFloats x, int32_t type, int64_t rows, int64_t cols, int64_t stride,
         std::vector<Matrix> weights, std::vector<FloatOut> out, int32_t activation, int32_t threads) {
        run_recorded(function, [=] {
          kvant_product products[kMostProducts];
          const size_t count = std::min({weights.size(), out.size(), size_t(kMostProducts)});
          for (size_t i = 0; i < count; ++i) products[i] = weights[i].product(out[i].data());
          return kvant_matmul(x.data(), type, rows, cols, stride, products, int32_t(count), activation, threads);
        });
      },
      nb::arg("function"), nb::arg("x").noconvert(), nb::arg("type"), nb::arg("rows"), nb::arg("cols"), nb::arg("stride"),
      nb::arg("weights"), nb::arg("out"), nb::arg("activation"), nb::arg("threads"));
}
