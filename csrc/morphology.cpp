#include "morphology.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

namespace samdistill {

Morphology::Morphology(Operation what, std::vector<FootprintRow> footprint)
    : operation_(what), rows_(std::move(footprint)) {
  std::stable_sort(rows_.begin(), rows_.end(), [](const FootprintRow& a, const FootprintRow& b) {
    return a.right - a.left < b.right - b.left;
  });
  FootprintRow inner = {0, 0, 0};
  for (const FootprintRow& row : rows_) {
    if (row.left > inner.left || row.right < inner.right) {
      throw std::invalid_argument("a footprint's rows must lie within one another and hold dx = 0");
    }
    inner = row;
  }
}

namespace {

// Flips the bits within the width.
void invert(BitImage& image) {
  const std::size_t whole = image.width / 64;
  const std::uint64_t rest = (std::uint64_t{1} << (image.width % 64)) - 1;
  for (std::size_t y = 0; y < image.height; ++y) {
    std::uint64_t* const row = image.row(y);
    for (std::size_t w = 0; w < whole; ++w) row[w] = ~row[w];
    row[whole] = ~row[whole] & rest;
  }
}

void clear_past_width(BitImage& image) {
  const std::size_t whole = image.width / 64;
  const std::uint64_t rest = (std::uint64_t{1} << (image.width % 64)) - 1;
  for (std::size_t y = 0; y < image.height; ++y) {
    std::uint64_t* const row = image.row(y);
    row[whole] &= rest;
    std::fill(row + whole + 1, row + image.words, 0);
  }
}

}  // namespace

void Morphology::apply(BitImage& image, const RowKernels& kernels) const {
  // Erosion is the dilation of what is not set: outside the image there is then nothing to grow, so that it
  // is ignored.
  if (operation_ == Operation::erosion) invert(image);
  BitImage grown(image.height, image.width);
  std::fill(grown.bits.begin(), grown.bits.end(), 0);
  const std::int64_t height = static_cast<std::int64_t>(image.height);
  for (std::int64_t y = 0; y < height; ++y) {
    std::uint64_t* const source = image.row(static_cast<std::size_t>(y));
    if (std::all_of(source, source + image.words, [](std::uint64_t word) { return word == 0; })) continue;
    std::int32_t left = 0, right = 0;
    for (const FootprintRow& row : rows_) {  // the source row grows from one footprint row to the next
      if (row.left != left || row.right != right) {
        // Pixel x is set by a pixel at x + dx: a set bit grows against the footprint.
        kernels.widen(source, image.words, static_cast<unsigned>(row.right - right),
                      static_cast<unsigned>(left - row.left));
        left = row.left;
        right = row.right;
      }
      const std::int64_t target = y - row.dy;
      if (target < 0 || target >= height) continue;
      kernels.unite(source, image.words, grown.row(static_cast<std::size_t>(target)));
    }
  }
  clear_past_width(grown);
  image.bits.swap(grown.bits);
  if (operation_ == Operation::erosion) invert(image);
}

}  // namespace samdistill
