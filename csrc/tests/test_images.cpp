// Resizing within its bounds and alike row by row and all at once; PNG's filters as the specification has
// them.
#include <cstdint>
#include <random>
#include <vector>

#include "check.h"
#include "png.h"
#include "resample.h"
#include "unfilter.h"

namespace {

std::vector<std::uint8_t> noise(std::size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<std::uint8_t> bytes(count);
  for (std::uint8_t& byte : bytes) byte = static_cast<std::uint8_t>(random());
  return bytes;
}

// Single rows take the portable code, several the processor's.
void rows_are_resized_alike_alone_and_together() {
  std::mt19937 random(4);
  for (unsigned trial = 0; trial < 300; ++trial) {
    const std::size_t height = 1 + random() % 12, width = 1 + random() % 90, wanted = 1 + random() % 90;
    const std::vector<std::uint8_t> image = noise(3 * height * width, trial);
    std::vector<std::uint8_t> together(3 * height * wanted), alone(3 * wanted);
    samdistill::resize_rgb(image.data(), {height, width}, {height, wanted}, together.data());
    for (std::size_t y = 0; y < height; ++y) {
      samdistill::resize_rgb(image.data() + 3 * y * width, {1, width}, {1, wanted}, alone.data());
      for (std::size_t i = 0; i < alone.size(); ++i) CHECK(alone[i] == together[3 * y * wanted + i]);
    }
  }
}

void what_is_even_stays_even() {
  std::mt19937 random(5);
  for (int trial = 0; trial < 200; ++trial) {
    const samdistill::Size from{1 + random() % 40, 1 + random() % 40},
        to{1 + random() % 90, 1 + random() % 90};
    const std::vector<std::uint8_t> image(3 * from.height * from.width, 201);
    std::vector<std::uint8_t> resized(3 * to.height * to.width);
    samdistill::resize_rgb(image.data(), from, to, resized.data());
    for (const std::uint8_t byte : resized) CHECK(byte == 201);
    const std::vector<float> map(from.height * from.width, 0.25f);
    std::vector<float> wide(to.height * to.width);
    samdistill::resize_map(map.data(), from, to, wide.data());
    for (const float value : wide) CHECK(value > 0.2499999f && value < 0.2500001f);
  }
}

void filters_are_undone() {
  std::mt19937 random(6);
  for (unsigned trial = 0; trial < 400; ++trial) {
    const std::size_t pixels[] = {1, 2, 3, 3, 3, 4, 6, 8};
    const std::size_t pixel = pixels[trial % 8], height = 1 + random() % 14;
    const std::size_t bytes = pixel * (1 + random() % 40);
    std::vector<std::uint8_t> rows = noise(height * (bytes + 1), trial), expected, found(height * bytes);
    const unsigned often = random() % 3;
    for (std::size_t y = 0; y < height; ++y) {
      rows[y * (bytes + 1)] = static_cast<std::uint8_t>(random() % 3 < often ? 4 : random() % 5);
    }
    CHECK(unfilter(rows, height, bytes, pixel, &expected));
    CHECK(samdistill::unfilter_png(rows.data(), height, bytes, pixel, found.data()));
    CHECK(found == expected);
    rows[(height - 1) * (bytes + 1)] = 5;
    CHECK(!samdistill::unfilter_png(rows.data(), height, bytes, pixel, found.data()));
  }
}

}  // namespace

int main() {
  rows_are_resized_alike_alone_and_together();
  what_is_even_stays_even();
  filters_are_undone();
  return finish();
}
