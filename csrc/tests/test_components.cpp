// Labels, statistics, painting and cleaning on every instruction set at hand, against flood fill.
#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "check.h"
#include "components.h"
#include "flood.h"

using namespace samdistill;

namespace {

std::mt19937 randomness(1);

// Sparse, dense or blobby maps of multiples of 1/256.
std::vector<float> random_map(std::size_t pixels, std::size_t width) {
  const unsigned kind = randomness() % 4;
  std::vector<float> map(pixels);
  for (std::size_t i = 0; i < pixels; ++i) {
    const unsigned value = randomness() % 256;
    map[i] = static_cast<float>(kind == 0 ? value : kind == 1 ? value / 2 + 8 : value / 2 + 120) / 256;
    const float left = i % width > 0 ? map[i - 1] : 0, above = i >= width ? map[i - width] : 0;
    if (kind == 3 && randomness() % 8 != 0) map[i] = randomness() % 2 ? left : above;  // runs and columns
  }
  return map;
}

void labels_and_statistics_are_those_of_flood_fill() {
  std::size_t count = 0;
  const RowKernels* const* tables = all_row_kernels(&count);
  const std::size_t widths[] = {1, 2, 3, 15, 16, 17, 62, 63, 64, 65, 127, 128, 129, 300};
  for (int trial = 0; trial < 600; ++trial) {
    const std::size_t width = widths[randomness() % 14], height = 1 + randomness() % 24,
                      pixels = width * height;
    const std::vector<float> map = random_map(pixels, width);
    std::vector<std::uint8_t> mask(pixels);
    for (std::size_t i = 0; i < pixels; ++i)
      mask[i] = map[i] > 0.5f ? static_cast<std::uint8_t>(1 + i % 255) : 0;
    const bool diagonal = trial % 2 == 0;
    const flood::Found expected = flood::fill(mask, map, height, width, diagonal);
    for (std::size_t t = 0; t < count; ++t) {
      const RowKernels& kernels = *tables[t];
      CHECK(
          flood::agrees(label_mask(mask.data(), height, width, diagonal, kernels), expected, false, kernels));
      CHECK(flood::agrees(label_map(map.data(), height, width, 0.5f, diagonal, true, kernels), expected, true,
                          kernels));
    }
  }
}

void shapes_that_are_easily_got_wrong() {
  for (const std::size_t width : {1, 40, 64, 40000}) {
    const std::size_t height = 40000 / width;
    std::vector<std::uint8_t> ones(width * height, 1);
    const Components all = label_mask(ones.data(), height, width, true);
    CHECK(all.regions.size() == 1 && all.regions[0].area_px == static_cast<std::int64_t>(width * height));
    CHECK(all.regions[0].x1 == static_cast<std::int32_t>(width) &&
          all.regions[0].y1 == static_cast<std::int32_t>(height));
    std::fill(ones.begin(), ones.end(), std::uint8_t{0});
    CHECK(label_mask(ones.data(), height, width, true).regions.size() == 0);
  }
  CHECK(label_mask(nullptr, 0, 7, true).regions.size() == 0);
  CHECK(label_mask(nullptr, 7, 0, false).row_first.size() == 8);

  // A spiral: one component whose arms meet at the very end, the worst for equivalences.
  const std::size_t side = 101;
  std::vector<std::uint8_t> spiral(side * side, 0);
  std::int32_t x = 0, y = 0, dx = 1, dy = 0;
  const auto at = [&](std::int32_t px, std::int32_t py) -> std::uint8_t {
    if (px < 0 || py < 0 || px >= static_cast<std::int32_t>(side) || py >= static_cast<std::int32_t>(side))
      return 0;
    return spiral[static_cast<std::size_t>(py) * side + static_cast<std::size_t>(px)];
  };
  const auto inside = [&](std::int32_t px, std::int32_t py) {
    return px >= 0 && py >= 0 && px < static_cast<std::int32_t>(side) && py < static_cast<std::int32_t>(side);
  };
  for (;;) {
    spiral[static_cast<std::size_t>(y) * side + static_cast<std::size_t>(x)] = 1;
    const bool blocked = !inside(x + dx, y + dy) || at(x + 2 * dx, y + 2 * dy) != 0;
    if (blocked) {
      std::swap(dx, dy);
      dx = -dx;
      if (!inside(x + dx, y + dy) || at(x + dx, y + dy) != 0 || at(x + 2 * dx, y + 2 * dy) != 0) break;
    }
    x += dx;
    y += dy;
  }
  CHECK(label_mask(spiral.data(), side, side, false).regions.size() == 1);
  CHECK(label_mask(spiral.data(), side, side, true).regions.size() == 1);
  CHECK(std::count(spiral.begin(), spiral.end(), std::uint8_t{1}) > 4000);
}

void nan_is_met_where_it_is() {
  std::size_t count = 0;
  const RowKernels* const* tables = all_row_kernels(&count);
  for (std::size_t t = 0; t < count; ++t) {
    for (const std::size_t place : {0, 5, 70, 99, 100, 163, 164, 298, 299}) {
      std::vector<float> map(300, 0.7f);
      map[place] = std::nanf("");
      std::size_t met = 1000;
      try {
        label_map(map.data(), 3, 100, 0.5f, true, true, *tables[t]);
      } catch (const NotANumber& error) {
        met = error.index;
      }
      CHECK(met == place);
      std::vector<std::uint8_t> masks(300);
      const float thresholds[] = {0.5f, 0.5f, 0.5f};
      met = 1000;
      try {
        clean(map.data(), 3, 1, 100, thresholds, Cleaning(), masks.data(), *tables[t]);
      } catch (const NotANumber& error) {
        met = error.index;
      }
      CHECK(met == place);
    }
  }
}

void cleaning_keeps_what_it_is_told_to() {
  std::size_t count = 0;
  const RowKernels* const* tables = all_row_kernels(&count);
  for (int trial = 0; trial < 300; ++trial) {
    const std::size_t width = 1 + randomness() % 140, height = 1 + randomness() % 20, pixels = width * height;
    const std::vector<float> map = random_map(pixels, width);
    std::vector<std::uint8_t> mask(pixels);
    for (std::size_t i = 0; i < pixels; ++i) mask[i] = map[i] > 0.5f;
    const flood::Found found = flood::fill(mask, map, height, width, true);
    Cleaning how;
    how.keep = static_cast<Keep>(trial % 3);
    how.min_area_px = static_cast<std::int64_t>(randomness() % 6);
    std::vector<bool> stays(found.regions.size() + 1, false);
    std::size_t best = 0;
    for (std::size_t k = 1; k <= found.regions.size(); ++k) {
      const Region& region = found.regions[k - 1];
      if (region.area_px < how.min_area_px) continue;
      if (how.keep == Keep::all) stays[k] = true;
      const auto worth = [&](std::size_t j) {
        const Region& r = found.regions[j - 1];
        return how.keep == Keep::largest ? static_cast<double>(r.area_px) : r.mean_probability();
      };
      if (best == 0 || worth(k) > worth(best)) best = k;
    }
    if (how.keep != Keep::all && best != 0) stays[best] = true;
    for (std::size_t t = 0; t < count; ++t) {
      std::vector<std::uint8_t> cleaned(pixels, 9);
      const float threshold = 0.5f;
      clean(map.data(), 1, height, width, &threshold, how, cleaned.data(), *tables[t]);
      for (std::size_t i = 0; i < pixels; ++i) {
        CHECK(cleaned[i] == (found.labels[i] > 0 && stays[static_cast<std::size_t>(found.labels[i])]));
      }
    }
  }
}

}  // namespace

int main() {
  labels_and_statistics_are_those_of_flood_fill();
  shapes_that_are_easily_got_wrong();
  nan_is_met_where_it_is();
  cleaning_keeps_what_it_is_told_to();
  return finish();
}
