#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "program.h"

namespace nb = nanobind;

void bind_program(nb::module_& m) {
  nb::class_<Program>(m, "Program")
      .def(nb::init<>())
      .def("__enter__",
           [](nb::handle self) {
             if (Program::recording()) throw nb::value_error("a program is being recorded already");
             Program::recording() = nb::cast<Program*>(self);
             return nb::borrow(self);
           })
      .def("__exit__", [](Program&, nb::handle, nb::handle, nb::handle) { Program::recording() = nullptr; },
           nb::arg("type").none(), nb::arg("value").none(), nb::arg("traceback").none())
      .def("seconds", [](const Program& program) {
        std::vector<std::pair<std::string, double>> all;
        for (const Program::Entry& entry : program.entries()) all.emplace_back(entry.function, entry.seconds);
        return all;
      });
  m.def("replay", [](Program& program) { program.run(false); }, nb::arg("program"));
  m.def("replay_timed", [](Program& program) { program.run(true); }, nb::arg("program"));
}
