// What several register_*.cpp need to take their arguments.
#pragma once

#include <pybind11/numpy.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "components.h"

using Map = pybind11::array_t<float, pybind11::array::c_style>;
using Integers = pybind11::array_t<std::int32_t, pybind11::array::c_style>;

inline std::size_t extent(const pybind11::array& array, pybind11::ssize_t axis) {
  return static_cast<std::size_t>(array.shape(axis));
}

inline pybind11::ssize_t length(std::size_t size) { return static_cast<pybind11::ssize_t>(size); }

// Owns what samdistill::Cleaning points to. footprint: rows of dy, left, right, or None.
class CleaningArguments {
 public:
  CleaningArguments(samdistill::Keep keep, std::int64_t min_area_px, bool erosion,
                    const std::optional<Integers>& footprint) {
    how_.keep = keep;
    how_.min_area_px = min_area_px;
    if (!footprint) return;
    std::vector<samdistill::FootprintRow> rows;
    for (pybind11::ssize_t i = 0; i < footprint->shape(0); ++i) {
      rows.push_back({footprint->at(i, 0), footprint->at(i, 1), footprint->at(i, 2)});
    }
    shape_.emplace(erosion ? samdistill::Operation::erosion : samdistill::Operation::dilation,
                   std::move(rows));
    how_.morphology = &*shape_;
  }
  CleaningArguments(const CleaningArguments&) = delete;
  CleaningArguments& operator=(const CleaningArguments&) = delete;

  const samdistill::Cleaning& how() const { return how_; }

 private:
  std::optional<samdistill::Morphology> shape_;
  samdistill::Cleaning how_;
};
