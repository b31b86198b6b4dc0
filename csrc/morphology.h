// Erosion and dilation of masks held as rows of bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "buffer.h"
#include "rows.h"

namespace samdistill {

// A mask as rows of words_for(width) words each; bits past the width are 0.
struct BitImage {
  std::size_t height, width, words;
  Buffer<std::uint64_t> bits;

  BitImage(std::size_t h, std::size_t w) : height(h), width(w), words(words_for(w)), bits(h * words_for(w)) {}
  std::uint64_t* row(std::size_t y) { return bits.data() + y * words; }
  const std::uint64_t* row(std::size_t y) const { return bits.data() + y * words; }
};

// One row of a footprint: the offsets dx of left .. right, both included, at dy.
struct FootprintRow {
  std::int32_t dy, left, right;  // left <= 0 <= right
};

enum class Operation { erosion, dilation };

// Dilation sets a pixel where any pixel under the footprint is set; erosion leaves it where all are. Outside
// the image counts as background for dilation and is ignored for erosion. Of any two rows of the footprint
// one must lie within the other, as in a square, disk, diamond or star; the rows are sorted here.
struct Morphology {
  Morphology(Operation what, std::vector<FootprintRow> footprint);
  void apply(BitImage& image, const RowKernels& kernels = row_kernels()) const;

 private:
  Operation operation_;
  std::vector<FootprintRow> rows_;  // narrowest first
};

}  // namespace samdistill
