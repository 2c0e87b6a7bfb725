// Calls of the C ABI, and its return codes as the exceptions of kvant.errors.
#pragma once

#include <nanobind/nanobind.h>

#include "capi/kvant.h"

// `function` is what the caller knows it by; messages begin with it, and go on with `about`.
inline void check(int32_t code, const char* function, const char* about = "") {
  if (code == KVANT_OK) return;
  if (code == KVANT_NO_MEMORY) throw std::bad_alloc();
  namespace nb = nanobind;
  const char* type = code == KVANT_BAD_FORMAT          ? "FormatError"
                     : code == KVANT_UNSUPPORTED_ISA   ? "IsaError"
                     : code == KVANT_FULL              ? "CacheFullError"
                                                       : "ShapeError";
  const nb::object cls = nb::module_::import_("kvant.errors").attr(type);
  PyErr_Format(cls.ptr(), "[%s] %s%s", function, about, kvant_error_text());
  throw nb::python_error();
}

// Lets other Python threads run meanwhile.
template <class Call>
void run(const char* function, Call&& call) {
  int32_t code;
  {
    nanobind::gil_scoped_release release;
    code = call();
  }
  check(code, function);
}
