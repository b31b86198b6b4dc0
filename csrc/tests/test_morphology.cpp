// Erosion and dilation on every instruction set at hand, pixel by pixel.
#include <cstdlib>
#include <random>
#include <stdexcept>
#include <vector>

#include "check.h"
#include "morphology.h"

using namespace samdistill;

namespace {

std::mt19937 randomness(1);

// Squares (off-centre too), diamonds and crosses: rows within one another.
std::vector<FootprintRow> random_footprint() {
  const auto radius = static_cast<std::int32_t>(randomness() % 18);
  const auto more = static_cast<std::int32_t>(randomness() % 2);
  const unsigned kind = randomness() % 3;
  std::vector<FootprintRow> rows;
  for (std::int32_t dy = -radius; dy <= radius + (kind == 0 ? more : 0); ++dy) {
    const std::int32_t reach = kind == 0   ? radius
                               : kind == 1 ? radius - std::abs(dy)
                               : dy == 0   ? 2 * radius
                                           : 0;
    rows.push_back({dy, -reach, reach + (kind == 0 ? more : 0)});
  }
  return rows;
}

void pixels_are_those_under_the_footprint() {
  std::size_t count = 0;
  const RowKernels* const* tables = all_row_kernels(&count);
  const std::size_t widths[] = {1, 3, 62, 63, 64, 65, 100, 127, 128, 200};
  for (int trial = 0; trial < 200; ++trial) {
    const std::size_t width = widths[randomness() % 10], height = 1 + randomness() % 30;
    const unsigned share = randomness() % 5;  // 0: empty, 1: a pixel here and there, 4: full
    std::vector<std::uint8_t> mask(width * height);
    for (std::uint8_t& pixel : mask) pixel = randomness() % 64 < share * share * share;
    const std::vector<FootprintRow> footprint = random_footprint();
    for (const Operation operation : {Operation::erosion, Operation::dilation}) {
      std::vector<std::uint8_t> expected(mask.size());
      for (std::size_t i = 0; i < mask.size(); ++i) {
        bool any = false, all = true;
        for (const FootprintRow& row : footprint) {
          const std::int64_t y = static_cast<std::int64_t>(i / width) + row.dy;
          for (std::int32_t dx = row.left; dx <= row.right; ++dx) {
            const std::int64_t x = static_cast<std::int64_t>(i % width) + dx;
            if (x < 0 || y < 0 || x >= static_cast<std::int64_t>(width) ||
                y >= static_cast<std::int64_t>(height)) {
              continue;
            }
            const bool set = mask[static_cast<std::size_t>(y) * width + static_cast<std::size_t>(x)] != 0;
            any |= set;
            all &= set;
          }
        }
        expected[i] = operation == Operation::dilation ? any : all;
      }
      const Morphology morphology(operation, footprint);
      for (std::size_t t = 0; t < count; ++t) {
        BitImage image(height, width);
        std::vector<std::uint8_t> result(mask.size(), 9);
        for (std::size_t y = 0; y < height; ++y)
          tables[t]->bits_of_bytes(mask.data() + y * width, width, image.row(y));
        morphology.apply(image, *tables[t]);
        for (std::size_t y = 0; y < height; ++y)
          tables[t]->bytes_of_bits(image.row(y), width, result.data() + y * width);
        CHECK(result == expected);
      }
    }
  }
}

void footprints_whose_rows_cross_are_refused() {
  bool refused = false;
  try {
    const Morphology crossed(Operation::dilation, {{-1, -2, 0}, {0, 0, 3}});
  } catch (const std::invalid_argument&) {
    refused = true;
  }
  CHECK(refused);
}

}  // namespace

int main() {
  pixels_are_those_under_the_footprint();
  footprints_whose_rows_cross_are_refused();
  return finish();
}
