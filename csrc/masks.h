// Overlap of many masks with many others, on bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace samdistill {

// Masks as bits: bit b of word(column, k)[y] is pixel (64 * column + b, y) of mask k. The rows of a word
// column lie behind each other, so that the overlap of two masks is a run over the rows that both have.
class PackedMasks {
 public:
  // Packs `count` masks of height x width bytes; any byte but 0 is foreground.
  PackedMasks(const std::uint8_t* masks, std::size_t count, std::size_t height, std::size_t width);

  struct Extent {  // rows and word columns that hold foreground, half-open; empty masks have none
    std::size_t top, bottom, left, right;
  };

  std::size_t count() const { return count_; }
  std::size_t columns() const { return columns_; }
  const std::uint64_t* words(std::size_t column, std::size_t k) const {
    return words_.data() + (column * count_ + k) * height_;
  }
  const Extent& extent(std::size_t k) const { return extents_[k]; }
  std::int64_t area(std::size_t k) const { return areas_[k]; }

 private:
  void pack_row(const std::uint8_t* pixels, std::size_t k, std::size_t y);

  std::size_t count_, height_, width_, columns_;
  std::vector<std::uint64_t> words_;
  std::vector<Extent> extents_;
  std::vector<std::int64_t> areas_;
};

// iou[i * b.count() + j] = |a_i and b_j| / |a_i or b_j|, 1 where both are empty. Both must have one size.
void mask_iou(const PackedMasks& a, const PackedMasks& b, double* iou);

}  // namespace samdistill
