// Labelling, summaries and cleaning.
#include <pybind11/gil_safe_call_once.h>
#include <pybind11/native_enum.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <exception>
#include <optional>
#include <utility>

#include "arguments.h"
#include "components.h"
#include "register.h"

namespace py = pybind11;

namespace {

using samdistill::Components;
using samdistill::Region;

// Area, boxes, centroids and, with probabilities, their means: one row a component.
py::tuple table(const Components& found, bool with_probability) {
  const py::ssize_t count = length(found.regions.size());
  py::array_t<std::int64_t> area(count), boxes({count, py::ssize_t{4}});
  py::array_t<double> centroids({count, py::ssize_t{2}});
  std::int64_t* area_px = area.mutable_data();
  std::int64_t* box = boxes.mutable_data();
  double* centroid = centroids.mutable_data();
  for (const Region& region : found.regions) {
    const double pixels = static_cast<double>(region.area_px);
    *area_px++ = region.area_px;
    *box++ = region.x0;
    *box++ = region.y0;
    *box++ = region.x1;
    *box++ = region.y1;
    *centroid++ = static_cast<double>(region.sum_2x) / (2 * pixels);
    *centroid++ = static_cast<double>(region.sum_y) / pixels;
  }
  if (!with_probability)
    return py::make_tuple(std::move(area), std::move(boxes), std::move(centroids), py::none());
  py::array_t<double> means(count);
  double* mean = means.mutable_data();
  for (const Region& region : found.regions) *mean++ = region.mean_probability();
  return py::make_tuple(std::move(area), std::move(boxes), std::move(centroids), std::move(means));
}

// Hands a buffer to numpy without copying it.
Integers adopt(samdistill::Buffer<std::int32_t> buffer) {
  const py::ssize_t count = length(buffer.size());
  auto* const owned = new samdistill::Buffer<std::int32_t>(std::move(buffer));
  const py::capsule owner(
      owned, [](void* pointer) { delete static_cast<samdistill::Buffer<std::int32_t>*>(pointer); });
  return Integers(count, owned->data(), owner);
}

py::tuple label(const py::array& mask, bool diagonal) {
  Integers labels({mask.shape(0), mask.shape(1)});
  std::int32_t* const image = labels.mutable_data();
  const auto* const pixels = static_cast<const std::uint8_t*>(mask.data());
  Components found;
  {
    const py::gil_scoped_release release;
    found = samdistill::label_mask(pixels, extent(mask, 0), extent(mask, 1), diagonal);
    samdistill::paint(found.edges.data(), found.labels.data(), found.labels.size(),
                      found.height * found.width, image);
  }
  return py::make_tuple(std::move(labels), table(found, false));
}

py::tuple summarize(const Map& map, float threshold, bool diagonal) {
  Components found;
  {
    const py::gil_scoped_release release;
    found = samdistill::label_map(map.data(), extent(map, 0), extent(map, 1), threshold, diagonal, true);
  }
  py::tuple rows = table(found, true);
  return py::make_tuple(adopt(std::move(found.edges)), adopt(std::move(found.labels)), std::move(rows));
}

Integers paint(const Integers& edges, const Integers& run_labels, py::ssize_t height, py::ssize_t width) {
  Integers labels({height, width});
  std::int32_t* const image = labels.mutable_data();
  const py::gil_scoped_release release;
  samdistill::paint(edges.data(), run_labels.data(), extent(run_labels, 0),
                    static_cast<std::size_t>(height * width), image);
  return labels;
}

py::array_t<bool> clean(const Map& maps, const Map& thresholds, samdistill::Keep keep,
                        std::int64_t min_area_px, bool erosion, const std::optional<Integers>& footprint) {
  py::array_t<bool> masks({maps.shape(0), maps.shape(1), maps.shape(2)});
  auto* const bytes = reinterpret_cast<std::uint8_t*>(masks.mutable_data());
  const CleaningArguments cleaning(keep, min_area_px, erosion, footprint);
  const py::gil_scoped_release release;
  samdistill::clean(maps.data(), extent(maps, 0), extent(maps, 1), extent(maps, 2), thresholds.data(),
                    cleaning.how(), bytes);
  return masks;
}

PYBIND11_CONSTINIT py::gil_safe_call_once_and_store<py::object> not_a_number;

}  // namespace

void register_components(py::module_& module) {
  not_a_number.call_once_and_store_result(
      [&] { return py::exception<samdistill::NotANumber>(module, "NotANumber", PyExc_ValueError); });
  py::register_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const samdistill::NotANumber& error) {
      py::set_error(not_a_number.get_stored(), py::int_(error.index));  // Python says where that is
    }
  });
  py::native_enum<samdistill::Keep>(module, "Keep", "enum.Enum")
      .value("likeliest", samdistill::Keep::likeliest)
      .value("largest", samdistill::Keep::largest)
      .value("all", samdistill::Keep::all)
      .finalize();
  module.def("label", &label, py::arg("mask").noconvert(), py::arg("diagonal"));
  module.def("summarize", &summarize, py::arg("map").noconvert(), py::arg("threshold"), py::arg("diagonal"));
  module.def("paint", &paint, py::arg("edges").noconvert(), py::arg("run_labels").noconvert(),
             py::arg("height"), py::arg("width"));
  module.def("clean", &clean, py::arg("maps").noconvert(), py::arg("thresholds").noconvert(), py::arg("keep"),
             py::arg("min_area_px"), py::arg("erosion"), py::arg("footprint").noconvert());
}
