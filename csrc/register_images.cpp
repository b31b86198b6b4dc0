// Resizing of images and maps, and the filters of PNG.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "arguments.h"
#include "png.h"
#include "register.h"
#include "resample.h"

namespace py = pybind11;

namespace {

using Pixels = py::array_t<std::uint8_t, py::array::c_style>;

Pixels resize_rgb(const Pixels& image, std::size_t height, std::size_t width) {
  Pixels resized({length(height), length(width), image.shape(2)});
  std::uint8_t* out = resized.mutable_data();
  const samdistill::Size from{extent(image, 0), extent(image, 1)};
  const py::gil_scoped_release release;
  samdistill::resize_rgb(image.data(), from, {height, width}, out);
  return resized;
}

Map resize_maps(const Map& maps, std::size_t height, std::size_t width) {
  Map resized({maps.shape(0), length(height), length(width)});
  float* out = resized.mutable_data();
  const samdistill::Size from{extent(maps, 1), extent(maps, 2)};
  const py::gil_scoped_release release;
  for (std::size_t c = 0; c < extent(maps, 0); ++c) {
    samdistill::resize_map(maps.data() + c * from.height * from.width, from, {height, width},
                           out + c * height * width);
  }
  return resized;
}

// None where a filter's number is unknown.
py::object unfilter_png(const Pixels& rows, std::size_t height, std::size_t row_bytes,
                        std::size_t pixel_bytes) {
  if (rows.size() != length(height * (1 + row_bytes))) throw py::value_error("rows must be whole.");
  Pixels unfiltered({length(height), length(row_bytes)});
  std::uint8_t* out = unfiltered.mutable_data();
  bool known;
  {
    const py::gil_scoped_release release;
    known = samdistill::unfilter_png(rows.data(), height, row_bytes, pixel_bytes, out);
  }
  return known ? py::object(unfiltered) : py::none();
}

}  // namespace

void register_images(py::module_& module) {
  module.def("resize_rgb", &resize_rgb, py::arg("image").noconvert(), py::arg("height"), py::arg("width"));
  module.def("resize_maps", &resize_maps, py::arg("maps").noconvert(), py::arg("height"), py::arg("width"));
  module.def("unfilter_png", &unfilter_png, py::arg("rows").noconvert(), py::arg("height"),
             py::arg("row_bytes"), py::arg("pixel_bytes"));
}
