// Overlap of masks and non-maximum suppression of boxes.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <vector>

#include "arguments.h"
#include "masks.h"
#include "nms.h"
#include "register.h"

namespace py = pybind11;

namespace {

using Masks = py::array_t<bool, py::array::c_style>;
using Order = py::array_t<std::int64_t, py::array::c_style>;

std::size_t extent(const py::array& array, py::ssize_t axis) {
  return static_cast<std::size_t>(array.shape(axis));
}

const std::uint8_t* bytes(const Masks& masks) { return reinterpret_cast<const std::uint8_t*>(masks.data()); }

py::array_t<double> mask_iou(const Masks& a, const Masks& b) {
  py::array_t<double> iou({a.shape(0), b.shape(0)});
  double* out = iou.mutable_data();
  const std::size_t height = extent(a, 1), width = extent(a, 2);
  {
    const py::gil_scoped_release release;
    const samdistill::PackedMasks rows(bytes(a), extent(a, 0), height, width);
    if (a.data() == b.data() && a.shape(0) == b.shape(0)) {
      samdistill::mask_iou(rows, rows, out);
    } else {
      samdistill::mask_iou(rows, samdistill::PackedMasks(bytes(b), extent(b, 0), height, width), out);
    }
  }
  return iou;
}

template <typename Real>
py::array_t<std::int64_t> nms(const py::array_t<Real, py::array::c_style>& boxes, const Order& order,
                              double iou) {
  std::vector<std::int64_t> kept;
  {
    const py::gil_scoped_release release;
    kept = samdistill::nms(boxes.data(), order.data(), extent(order, 0), iou);
  }
  return py::array_t<std::int64_t>(static_cast<py::ssize_t>(kept.size()), kept.data());
}

}  // namespace

void register_masks(py::module_& module) {
  module.def("mask_iou", &mask_iou, py::arg("masks_a").noconvert(), py::arg("masks_b").noconvert());
  module.def("nms", &nms<float>, py::arg("boxes").noconvert(), py::arg("order").noconvert(), py::arg("iou"));
  module.def("nms", &nms<double>, py::arg("boxes").noconvert(), py::arg("order").noconvert(), py::arg("iou"));
}
