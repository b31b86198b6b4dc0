// Rectangular linear assignment.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>

#include "assignment.h"
#include "register.h"

namespace py = pybind11;

namespace {

// (status, row indices, column indices); status 0 ok, 1 invalid entries, 2 infeasible.
py::tuple assign(const py::array_t<double, py::array::c_style>& weights, bool maximize) {
  const py::ssize_t pairs = std::min(weights.shape(0), weights.shape(1));
  py::array_t<std::int64_t> rows(pairs), cols(pairs);
  std::int64_t *row_out = rows.mutable_data(), *col_out = cols.mutable_data();
  samdistill::AssignStatus status;
  {
    const py::gil_scoped_release release;
    status = samdistill::assign(weights.data(), static_cast<std::size_t>(weights.shape(0)),
                                static_cast<std::size_t>(weights.shape(1)), maximize, row_out, col_out);
  }
  return py::make_tuple(static_cast<int>(status), rows, cols);
}

}  // namespace

void register_assignment(py::module_& module) {
  module.def("assign", &assign, py::arg("weights").noconvert(), py::arg("maximize"));
}
