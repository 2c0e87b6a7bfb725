// Return codes of the C ABI as the exceptions of kvant.errors.
#pragma once

#include <nanobind/nanobind.h>

#include "capi/kvant.h"

inline void check(int32_t code) {
  if (code == KVANT_OK) return;
  if (code == KVANT_NO_MEMORY) throw std::bad_alloc();
  namespace nb = nanobind;
  const char* type = code == KVANT_BAD_FORMAT          ? "FormatError"
                     : code == KVANT_UNSUPPORTED_ISA   ? "IsaError"
                                                       : "ShapeError";
  const nb::object cls = nb::module_::import_("kvant.errors").attr(type);
  PyErr_SetString(cls.ptr(), kvant_error_text());
  throw nb::python_error();
}
