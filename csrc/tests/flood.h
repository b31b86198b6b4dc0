// Components by flood fill, pixel by pixel, and whether what the core found is the same: for tests and
// fuzzing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "components.h"

namespace flood {

struct Found {
  std::vector<std::int32_t> labels;
  std::vector<samdistill::Region> regions;
};

inline Found fill(const std::vector<std::uint8_t>& mask, const std::vector<float>& map, std::size_t height,
                  std::size_t width, bool diagonal) {
  Found found{std::vector<std::int32_t>(mask.size(), 0), {}};
  for (std::size_t start = 0; start < mask.size(); ++start) {
    if (mask[start] == 0 || found.labels[start] != 0) continue;
    const auto number = static_cast<std::int32_t>(found.regions.size() + 1);
    const auto first_x = static_cast<std::int32_t>(start % width),
               first_y = static_cast<std::int32_t>(start / width);
    samdistill::Region region{0, 0, 0, 0, first_x, first_y, first_x, first_y, 0};
    std::vector<std::size_t> pixels{start};
    found.labels[start] = number;
    for (std::size_t i = 0; i < pixels.size(); ++i) {
      const auto x = static_cast<std::int32_t>(pixels[i] % width),
                 y = static_cast<std::int32_t>(pixels[i] / width);
      region.area_px += 1;
      region.sum_2x += 2 * x;
      region.sum_y += y;
      region.x0 = x < region.x0 ? x : region.x0;
      region.x1 = x + 1 > region.x1 ? x + 1 : region.x1;
      region.y1 = y + 1 > region.y1 ? y + 1 : region.y1;
      region.sum_probability += static_cast<double>(map[pixels[i]]);
      for (std::int32_t dy = -1; dy <= 1; ++dy) {
        for (std::int32_t dx = -1; dx <= 1; ++dx) {
          if (!diagonal && dx != 0 && dy != 0) continue;
          const std::int32_t nx = x + dx, ny = y + dy;
          if (nx < 0 || ny < 0 || nx >= static_cast<std::int32_t>(width) ||
              ny >= static_cast<std::int32_t>(height)) {
            continue;
          }
          const std::size_t next = static_cast<std::size_t>(ny) * width + static_cast<std::size_t>(nx);
          if (mask[next] == 0 || found.labels[next] != 0) continue;
          found.labels[next] = number;
          pixels.push_back(next);
        }
      }
    }
    found.regions.push_back(region);
  }
  return found;
}

inline bool same(const samdistill::Region& a, const samdistill::Region& b, bool with_probability) {
  return a.area_px == b.area_px && a.sum_2x == b.sum_2x && a.sum_y == b.sum_y && a.x0 == b.x0 &&
         a.y0 == b.y0 && a.x1 == b.x1 && a.y1 == b.y1 &&
         (!with_probability || a.sum_probability == b.sum_probability);
}

// Whether table and label image are those of the flood; sums must agree to the last bit, which they can for
// values that are multiples of a power of two.
inline bool agrees(const samdistill::Components& found, const Found& expected, bool with_probability,
                   const samdistill::RowKernels& kernels) {
  if (found.regions.size() != expected.regions.size()) return false;
  for (std::size_t k = 0; k < expected.regions.size(); ++k) {
    if (!same(found.regions[k], expected.regions[k], with_probability)) return false;
  }
  std::vector<std::int32_t> image(expected.labels.size(), -1);
  samdistill::paint(found.edges.data(), found.labels.data(), found.labels.size(), image.size(), image.data(),
                    kernels);
  return image == expected.labels;
}

}  // namespace flood
