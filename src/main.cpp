// kvant._core: the C ABI as seen from Python. No logic, no defaults, no prose: those are in
// python/kvant. Pointers come from contiguous arrays that the Python side has already checked.
#include <nanobind/nanobind.h>

namespace nb = nanobind;

void bind_codec(nb::module_& m);
void bind_matmul(nb::module_& m);
void bind_runtime(nb::module_& m);
void bind_experts(nb::module_& m);
void bind_files(nb::module_& m);
void bind_kv(nb::module_& m);
void bind_ops(nb::module_& m);
void bind_probe(nb::module_& m);
void bind_program(nb::module_& m);

NB_MODULE(_core, m) {
  // Packed weights that a global holds until the interpreter ends are no leak.
  nb::set_leak_warnings(false);
  bind_codec(m);
  bind_matmul(m);
  bind_experts(m);
  bind_runtime(m);
  bind_files(m);
  bind_kv(m);
  bind_ops(m);
  bind_probe(m);
  bind_program(m);
}
