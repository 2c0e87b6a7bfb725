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

#include "program.h"

namespace nb = nanobind;

namespace {

// Rows of floats as raw bytes: two-dimensional, last axis contiguous; the type is passed apart
// because bf16 has no NumPy dtype of its own.
using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Out = nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Weights = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using ByteRows = nb::ndarray<const uint8_t, nb::ndim<2>, nb::device::cpu>;
using Index = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Sums = nb::ndarray<double, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

const float* data_or_null(const std::optional<Weights>& w) { return w ? w->data() : nullptr; }

}  // namespace

void bind_codec(nb::module_& m) {
  m.def("formats", [] {
    std::vector<std::tuple<std::string, int32_t, int32_t, int32_t, int32_t, bool, bool>> all;
    kvant_format f;
    for (int32_t i = 0; i < kvant_format_count(); ++i) {
      check(kvant_format_info(i, &f), "formats");
      all.emplace_back(f.name, f.ggml_type, f.block, f.block_bytes, f.group, f.can_encode, f.uses_importance);
    }
    return all;
  });
  m.def(
      "encode",
      [](int32_t format, uintptr_t x, int32_t type, int64_t rows, int64_t cols, int64_t row_stride,
         std::optional<Weights> importance, int64_t rows_per_vector, Out out, int32_t threads) {
        int64_t nonfinite = -1;
        run("quantize", [&] {
          const int32_t code = kvant_encode(format, reinterpret_cast<const void*>(x), type, rows, cols, row_stride,
                                            data_or_null(importance), rows_per_vector, out.data(), int64_t(out.size()),
                                            threads, &nonfinite);
          return nonfinite < 0 ? code : KVANT_OK;
        });
        return nonfinite;
      },
      nb::arg("format"), nb::arg("x"), nb::arg("type"), nb::arg("rows"), nb::arg("cols"), nb::arg("row_stride"),
      nb::arg("importance").none().noconvert(), nb::arg("rows_per_vector"), nb::arg("out").noconvert(),
      nb::arg("threads"));
  m.def(
      "decode",
      [](int32_t format, ByteRows data, int64_t row_stride, std::optional<Index> index, int64_t rows, int64_t cols,
         int32_t type, Out out, int32_t threads) {
        run("dequantize", [&] {
          return kvant_decode(format, data.data(), row_stride, int64_t(data.shape(0)), index ? index->data() : nullptr,
                              rows, cols, type, out.data(), threads);
        });
      },
      nb::arg("format"), nb::arg("data").noconvert(), nb::arg("row_stride"), nb::arg("index").none().noconvert(),
      nb::arg("rows"), nb::arg("cols"), nb::arg("type"), nb::arg("out").noconvert(), nb::arg("threads"));
  m.def(
      "embedding",
      [](int32_t format, ByteRows data, int64_t row_stride, Index ids, int64_t cols, int32_t type, Out out,
         int32_t threads) {
        run_recorded("embedding", [=] {
          return kvant_decode(format, data.data(), row_stride, int64_t(data.shape(0)), ids.data(), int64_t(ids.size()),
                              cols, type, out.data(), threads);
        });
      },
      nb::arg("format"), nb::arg("data").noconvert(), nb::arg("row_stride"), nb::arg("ids").noconvert(),
      nb::arg("cols"), nb::arg("type"), nb::arg("out").noconvert(), nb::arg("threads"));
  m.def(
      "row_errors",
      [](int32_t format, uintptr_t data, int64_t data_row_stride, uintptr_t x, int32_t type, int64_t rows,
         int64_t cols, int64_t row_stride, std::optional<Weights> importance, int64_t rows_per_vector, Sums out,
         int32_t threads) {
        run("quant_error", [&] {
          return kvant_row_errors(format, reinterpret_cast<const uint8_t*>(data), data_row_stride,
                                  reinterpret_cast<const void*>(x), type, rows, cols, row_stride,
                                  data_or_null(importance), rows_per_vector,
                                  reinterpret_cast<kvant_row_error*>(out.data()), threads);
        });
      },
      nb::arg("format"), nb::arg("data"), nb::arg("data_row_stride"), nb::arg("x"), nb::arg("type"),
      nb::arg("rows"), nb::arg("cols"), nb::arg("row_stride"), nb::arg("importance").none().noconvert(),
      nb::arg("rows_per_vector"), nb::arg("out").noconvert(), nb::arg("threads"));
  m.def(
      "validate",
      [](int32_t format, uintptr_t data, int64_t row_stride, int64_t rows, int64_t cols, int32_t threads) {
        int64_t block = -1;
        run("validate", [&] {
          return kvant_validate(format, reinterpret_cast<const uint8_t*>(data), row_stride, rows, cols, threads,
                                &block);
        });
        return block;
      },
      nb::arg("format"), nb::arg("data"), nb::arg("row_stride"), nb::arg("rows"), nb::arg("cols"),
      nb::arg("threads"));
}
