// Proposals for classes.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <utility>

#include "arguments.h"
#include "cover.h"
#include "register.h"

namespace py = pybind11;

namespace {

using Bytes = py::array_t<bool, py::array::c_style>;
using Reals = py::array_t<double, py::array::c_style>;
using Counts = py::array_t<std::int64_t, py::array::c_style>;

const std::uint8_t* bytes(const Bytes& array) { return reinterpret_cast<const std::uint8_t*>(array.data()); }

// (found, chosen of each class, upper bound, nodes, stop: 0 proven, 1 nodes, 2 time). Pieces: (first,
// touching).
py::tuple cover(const Bytes& covered_by, const Reals& inside, const Reals& outside, const Reals& total,
                const Counts& lower, const Counts& upper, const Counts& limit,
                const std::optional<std::pair<Counts, Bytes>>& pieces, std::int64_t nodes, double seconds) {
  samdistill::CoverProblem problem;
  problem.atoms = extent(covered_by, 0);
  problem.proposals = extent(covered_by, 1);
  problem.classes = extent(total, 0);
  problem.covered_by = bytes(covered_by);
  problem.inside = inside.data();
  problem.outside = outside.data();
  problem.total = total.data();
  problem.lower = lower.data();
  problem.upper = upper.data();
  problem.limit = limit.data();
  if (pieces) {
    problem.first_piece = pieces->first.data();
    problem.touching = bytes(pieces->second);
  }
  samdistill::CoverAnswer answer;
  {
    const py::gil_scoped_release release;
    answer = samdistill::cover(problem, {nodes, seconds});
  }
  py::list chosen;
  for (const auto& indices : answer.chosen) {
    chosen.append(py::array_t<std::int64_t>(length(indices.size()), indices.data()));
  }
  return py::make_tuple(answer.found, chosen, answer.upper_bound, answer.nodes,
                        static_cast<int>(answer.stop));
}

}  // namespace

void register_cover(py::module_& module) {
  module.def("cover", &cover, py::arg("covered_by").noconvert(), py::arg("inside").noconvert(),
             py::arg("outside").noconvert(), py::arg("total").noconvert(), py::arg("lower").noconvert(),
             py::arg("upper").noconvert(), py::arg("limit").noconvert(), py::arg("pieces"), py::arg("nodes"),
             py::arg("seconds"));
}
