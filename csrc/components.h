// Connected components by runs: pixels become bits, bits runs, and runs that touch are joined.
//
// Run-based labelling after He, Chao and Suzuki (2008), with their equivalences kept by Rem's union-find. The
// label image is painted from the runs, last and only on demand.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>

#include "buffer.h"
#include "morphology.h"
#include "rows.h"

namespace samdistill {

// A map holds NaN; `index` is the first one's place in the array that was given.
struct NotANumber : std::runtime_error {
  explicit NotANumber(std::size_t place) : std::runtime_error("NaN in a map"), index(place) {}
  std::size_t index;
};

// A labelled mask without its label image. height * width < 2^31.
struct Components {
  std::size_t height = 0, width = 0;
  Buffer<std::int32_t> edges;      // begin and end of each run, row * width + x, in raster order
  Buffer<std::int32_t> labels;     // of each run; 1 .. regions.size(), by the regions' first pixels
  Buffer<std::int32_t> row_first;  // height + 1: the first run of each row
  Buffer<Region> regions;          // label k is regions[k - 1]
};

// Labels the pixels that are not 0; `diagonal` makes 8-connected components, else 4-connected ones.
Components label_mask(const std::uint8_t* mask, std::size_t height, std::size_t width, bool diagonal,
                      const RowKernels& kernels = row_kernels());

// Labels the set bits.
Components label_bits(const BitImage& mask, bool diagonal, const RowKernels& kernels = row_kernels());

// Labels the pixels above the threshold. Throws NotANumber.
Components label_map(const float* map, std::size_t height, std::size_t width, float threshold, bool diagonal,
                     bool with_probability, const RowKernels& kernels = row_kernels());

// Writes the label image of height * width pixels, 0 = background.
void paint(const std::int32_t* edges, const std::int32_t* labels, std::size_t runs, std::size_t pixels,
           std::int32_t* image, const RowKernels& kernels = row_kernels());

enum class Keep { likeliest, largest, all };

// What `clean` does to each class. Components of fewer than min_area_px pixels go first; of the others the
// likeliest (greatest mean probability) or the largest stays, the first in raster order where several are
// equal; `morphology`, when there is one, comes last.
struct Cleaning {
  Keep keep = Keep::likeliest;
  std::int64_t min_area_px = 0;
  const Morphology* morphology = nullptr;
};

// Cleans one map, above its threshold, into `image`, which has its size. Throws NotANumber.
void clean_bits(const float* map, float threshold, const Cleaning& how, BitImage& image,
                const RowKernels& kernels = row_kernels());

// Makes a mask of 0 and 1 out of each of `classes` maps. Throws NotANumber, with the place in all of them.
void clean(const float* maps, std::size_t classes, std::size_t height, std::size_t width,
           const float* thresholds, const Cleaning& how, std::uint8_t* masks,
           const RowKernels& kernels = row_kernels());

}  // namespace samdistill
