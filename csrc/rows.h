// What is done to one row of pixels at a time: pixels to bits and back, runs, their sums, painting.
//
// A row of bits holds 64 pixels a word, pixel x in bit x % 64 of word x / 64; bits past the width are 0. A
// run is a maximal stretch of set bits. Edges are the runs' begins and ends, in turn, as positions in the
// whole image (row * width + x); the end is one past the last pixel.
//
// The table is compiled for several instruction sets and one is picked for the processor at hand; all give
// the same answers to the last bit.
#pragma once

#include <cstddef>
#include <cstdint>

namespace samdistill {

// Where the edges of the previous row lie, so that "how many edges are left of x" is a look-up and a
// popcount.
struct RowEdges {
  std::uint64_t* toggles;  // bit x set: pixel x differs from pixel x - 1; bits 0 .. width
  std::uint32_t* before;   // edges in the words before this one
};

// What is summed up of a component.
struct alignas(64) Region {
  std::int64_t area_px;
  std::int64_t sum_2x;  // twice the sum of x: whole, where a run's mean may end in a half
  std::int64_t sum_y;
  std::int64_t unused;
  std::int32_t x0, y0, x1, y1;  // half-open
  double sum_probability;       // 0 unless it was asked for

  double mean_probability() const { return sum_probability / static_cast<double>(area_px); }
};

struct RowKernels {
  const char* name;

  // Sets bit x where pixel x is not 0. Writes words_for(width) words.
  void (*bits_of_bytes)(const std::uint8_t* row, std::size_t width, std::uint64_t* bits);

  // Sets bit x where row[x] > threshold. Returns false when some value is NaN.
  bool (*bits_of_floats)(const float* row, std::size_t width, float threshold, std::uint64_t* bits);

  // Writes 1 where the bit is set and 0 elsewhere.
  void (*bytes_of_bits)(const std::uint64_t* bits, std::size_t width, std::uint8_t* row);

  // Writes the edges of one row, at `base` in the image, and where they lie. Returns how many edges. Up to
  // kEdgeSlack elements past the last edge are overwritten.
  std::size_t (*edges)(const std::uint64_t* bits, std::size_t words, std::int32_t base, RowEdges where,
                       std::int32_t* edges);

  // Joins the runs first .. first + runs of one row with the runs above..first of the row above, whose edges
  // lie at `where`. parents[i] <= i, and a root is its own parent.
  void (*join)(const std::int32_t* edges, std::size_t runs, std::int32_t base, std::size_t width,
               bool diagonal, RowEdges where, std::int32_t above, std::int32_t first, std::int32_t* parents);

  // Turns parents first .. first + runs of one row into labels, 1, 2, ... by the trees' roots, and adds the
  // runs to their regions; all rows before are done. `found` regions exist, there is room for `runs` more;
  // returns how many exist now. sums, each run's probability, may be null.
  std::size_t (*measure)(const std::int32_t* edges, const double* sums, std::size_t runs, std::int32_t base,
                         std::int32_t row, std::int32_t first, std::int32_t* parents, Region* regions,
                         std::size_t found);

  // Sums a map of so many pixels over each run, in double.
  void (*sums)(const float* map, std::size_t pixels, const std::int32_t* edges, std::size_t runs,
               double* sums);

  // Writes values[i] over run i and 0 elsewhere, `total` pixels in all.
  void (*paint)(const std::int32_t* edges, const std::int32_t* values, std::size_t runs, std::size_t total,
                std::int32_t* image);

  // into |= from, word by word.
  void (*unite)(const std::uint64_t* from, std::size_t words, std::uint64_t* into);

  // Grows each set bit to the `left` bits below it and the `right` bits above it, in place; what leaves the
  // words is lost.
  void (*widen)(std::uint64_t* bits, std::size_t words, unsigned left, unsigned right);
};

// Elements past the last edge that `edges` may overwrite.
constexpr std::size_t kEdgeSlack = 32;

// The table for this processor.
const RowKernels& row_kernels() noexcept;

// The tables this processor can run, best last, for tests; `count` is set.
const RowKernels* const* all_row_kernels(std::size_t* count) noexcept;

// Words for the bits of a row: room for bit `width` + 1 too, so that a run's end has a bit of its own.
constexpr std::size_t words_for(std::size_t width) noexcept { return (width + 1) / 64 + 1; }

}  // namespace samdistill
