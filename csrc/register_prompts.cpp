// Cleaning and prompts in one call.
#include <pybind11/native_enum.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <vector>

#include "arguments.h"
#include "components.h"
#include "prompts.h"
#include "register.h"

namespace py = pybind11;

namespace {

using samdistill::BitImage;

template <typename T>
py::array_t<T> array_of(const std::vector<T>& values, py::ssize_t columns = 0) {
  const py::ssize_t size = length(values.size());
  if (columns == 0) return py::array_t<T>(size, values.data());
  return py::array_t<T>({size / columns, columns}, values.data());
}

// ((class index, component, boxes, points, point labels, offsets), cleaned masks or None).
py::tuple extract_prompts(const Map& maps, const Map& thresholds, samdistill::Keep keep,
                          std::int64_t min_area_px, bool erosion, const std::optional<Integers>& footprint,
                          bool per_component, samdistill::PointRule points, std::int32_t count,
                          double spread_px, bool snap, bool negatives, std::uint64_t seed, bool with_masks) {
  const CleaningArguments cleaning(keep, min_area_px, erosion, footprint);
  const samdistill::PromptRules rules{per_component, points, count, spread_px, snap, negatives, seed};
  const std::size_t classes = extent(maps, 0), height = extent(maps, 1), width = extent(maps, 2);
  py::object masks = py::none();
  std::uint8_t* bytes = nullptr;
  if (with_masks) {
    py::array_t<bool> out({maps.shape(0), maps.shape(1), maps.shape(2)});
    bytes = reinterpret_cast<std::uint8_t*>(out.mutable_data());
    masks = std::move(out);
  }
  samdistill::PromptSets sets;
  if (maps.size() != 0) {
    const py::gil_scoped_release release;
    sets = samdistill::clean_and_extract(maps.data(), classes, height, width, thresholds.data(),
                                         cleaning.how(), rules, bytes);
  }
  py::tuple table =
      py::make_tuple(array_of(sets.class_index), array_of(sets.component), array_of(sets.boxes, 4),
                     array_of(sets.points, 2), array_of(sets.point_labels), array_of(sets.offsets));
  return py::make_tuple(std::move(table), std::move(masks));
}

}  // namespace

void register_prompts(py::module_& module) {
  py::native_enum<samdistill::PointRule>(module, "PointRule", "enum.Enum")
      .value("none", samdistill::PointRule::none)
      .value("likeliest", samdistill::PointRule::likeliest)
      .value("centre", samdistill::PointRule::centre)
      .finalize();
  module.def("extract_prompts", &extract_prompts, py::arg("maps").noconvert(),
             py::arg("thresholds").noconvert(), py::arg("keep"), py::arg("min_area_px"), py::arg("erosion"),
             py::arg("footprint").noconvert(), py::arg("per_component"), py::arg("points"), py::arg("count"),
             py::arg("spread_px"), py::arg("snap"), py::arg("negatives"), py::arg("seed"),
             py::arg("with_masks"));
}
