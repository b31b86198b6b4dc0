#include "components.h"

#include <algorithm>
#include <cstring>

namespace samdistill {
namespace {

// Two rows' worth of edge places: the row above and this one.
class EdgePlaces {
 public:
  explicit EdgePlaces(std::size_t words) : toggles_(2 * words), before_(2 * words) {
    std::fill(toggles_.begin(), toggles_.end(), 0);  // above the first row there is nothing
    std::fill(before_.begin(), before_.end(), 0);
    above = {toggles_.data(), before_.data()};
    here = {toggles_.data() + words, before_.data() + words};
  }
  void next_row() { std::swap(above, here); }

  RowEdges above, here;

 private:
  Buffer<std::uint64_t> toggles_;
  Buffer<std::uint32_t> before_;
};

// Gives the runs of each tree one label, in the order of the trees' first runs, and sums up their pixels.
void number_and_measure(Components& found, const double* sums, const RowKernels& kernels) {
  for (std::size_t y = 0; y < found.height; ++y) {
    const std::size_t first = static_cast<std::size_t>(found.row_first[y]);
    const std::size_t runs = static_cast<std::size_t>(found.row_first[y + 1]) - first;
    const std::size_t regions = found.regions.size();
    found.regions.reserve(regions + runs);
    found.regions.resize(kernels.measure(
        found.edges.data() + 2 * first, sums == nullptr ? nullptr : sums + first, runs,
        static_cast<std::int32_t>(y * found.width), static_cast<std::int32_t>(y),
        static_cast<std::int32_t>(first), found.labels.data(), found.regions.data(), regions));
  }
}

// `make_bits(y, bits)` makes the bits of row y.
template <typename MakeBits>
Components label_rows(std::size_t height, std::size_t width, bool diagonal, const float* map,
                      const RowKernels& kernels, const MakeBits& make_bits) {
  Components found;
  found.height = height;
  found.width = width;
  found.row_first.resize(height + 1);
  std::fill(found.row_first.begin(), found.row_first.end(), 0);
  if (height == 0 || width == 0) return found;
  const std::size_t words = words_for(width);
  Buffer<std::uint64_t> bits(words);
  Buffer<double> sums;
  EdgePlaces places(words);
  std::size_t runs_above = 0;
  for (std::size_t y = 0; y < height; ++y) {
    make_bits(y, bits.data());
    const std::size_t runs = found.labels.size();
    found.edges.reserve(2 * runs + width + 1 + kEdgeSlack);
    std::int32_t* const edges = found.edges.data() + 2 * runs;
    const std::int32_t base = static_cast<std::int32_t>(y * width);
    const std::size_t here = kernels.edges(bits.data(), words, base, places.here, edges) / 2;
    found.edges.resize(2 * (runs + here));
    found.labels.resize(runs + here);
    kernels.join(edges, here, base, width, diagonal, places.above,
                 static_cast<std::int32_t>(runs - runs_above), static_cast<std::int32_t>(runs),
                 found.labels.data());
    if (map != nullptr) {
      sums.resize(runs + here);
      kernels.sums(map, height * width, edges, here, sums.data() + runs);
    }
    runs_above = here;
    found.row_first[y + 1] = static_cast<std::int32_t>(runs + here);
    places.next_row();
  }
  number_and_measure(found, map == nullptr ? nullptr : sums.data(), kernels);
  return found;
}

void bits_of_row(const float* map, std::size_t y, std::size_t width, float threshold,
                 const RowKernels& kernels, std::uint64_t* bits) {
  const float* const row = map + y * width;
  if (kernels.bits_of_floats(row, width, threshold, bits)) return;
  const float* const nan = std::find_if(row, row + width, [](float p) { return p != p; });
  throw NotANumber(static_cast<std::size_t>(nan - map));
}

// Sets bits begin .. end - 1 of a row.
void set_bits(std::uint64_t* row, std::size_t begin, std::size_t end) {
  const std::size_t first = begin / 64, last = (end - 1) / 64;
  const std::uint64_t from = ~std::uint64_t{0} << (begin % 64),
                      to = ~std::uint64_t{0} >> (63 - (end - 1) % 64);
  if (first == last) {
    row[first] |= from & to;
    return;
  }
  row[first] |= from;
  std::fill(row + first + 1, row + last, ~std::uint64_t{0});
  row[last] |= to;
}

// Of the regions that are large enough, the one to keep; 0 where there is none.
std::int32_t chosen_label(const Components& found, const Cleaning& how) {
  std::int32_t chosen = 0;
  double best = 0;
  for (std::size_t k = 0; k < found.regions.size(); ++k) {
    const Region& region = found.regions[k];
    if (region.area_px < how.min_area_px) continue;
    const double worth =
        how.keep == Keep::likeliest ? region.mean_probability() : static_cast<double>(region.area_px);
    if (chosen == 0 || worth > best) {
      chosen = static_cast<std::int32_t>(k) + 1;
      best = worth;
    }
  }
  return chosen;
}

// The bits of the components that stay.
void kept_bits(const float* map, float threshold, const Cleaning& how, BitImage& image,
               const RowKernels& kernels) {
  if (how.keep == Keep::all && how.min_area_px <= 1) {
    for (std::size_t y = 0; y < image.height; ++y) {
      bits_of_row(map, y, image.width, threshold, kernels, image.row(y));
    }
    return;
  }
  const Components found =
      label_map(map, image.height, image.width, threshold, true, how.keep == Keep::likeliest, kernels);
  const std::int32_t chosen = how.keep == Keep::all ? 0 : chosen_label(found, how);
  std::fill(image.bits.begin(), image.bits.end(), 0);
  for (std::size_t y = 0; y < image.height; ++y) {
    const std::size_t base = y * image.width;
    for (std::size_t i = static_cast<std::size_t>(found.row_first[y]);
         i < static_cast<std::size_t>(found.row_first[y + 1]); ++i) {
      const std::int32_t label = found.labels[i];
      const bool stays = how.keep == Keep::all
                             ? found.regions[static_cast<std::size_t>(label) - 1].area_px >= how.min_area_px
                             : label == chosen;
      if (!stays) continue;
      set_bits(image.row(y), static_cast<std::size_t>(found.edges[2 * i]) - base,
               static_cast<std::size_t>(found.edges[2 * i + 1]) - base);
    }
  }
}

}  // namespace

Components label_mask(const std::uint8_t* mask, std::size_t height, std::size_t width, bool diagonal,
                      const RowKernels& kernels) {
  return label_rows(height, width, diagonal, nullptr, kernels, [&](std::size_t y, std::uint64_t* bits) {
    kernels.bits_of_bytes(mask + y * width, width, bits);
  });
}

Components label_bits(const BitImage& mask, bool diagonal, const RowKernels& kernels) {
  return label_rows(
      mask.height, mask.width, diagonal, nullptr, kernels,
      [&](std::size_t y, std::uint64_t* bits) { std::copy(mask.row(y), mask.row(y) + mask.words, bits); });
}

Components label_map(const float* map, std::size_t height, std::size_t width, float threshold, bool diagonal,
                     bool with_probability, const RowKernels& kernels) {
  return label_rows(
      height, width, diagonal, with_probability ? map : nullptr, kernels,
      [&](std::size_t y, std::uint64_t* bits) { bits_of_row(map, y, width, threshold, kernels, bits); });
}

void paint(const std::int32_t* edges, const std::int32_t* labels, std::size_t runs, std::size_t pixels,
           std::int32_t* image, const RowKernels& kernels) {
  kernels.paint(edges, labels, runs, pixels, image);
}

void clean_bits(const float* map, float threshold, const Cleaning& how, BitImage& image,
                const RowKernels& kernels) {
  kept_bits(map, threshold, how, image, kernels);
  if (how.morphology != nullptr) how.morphology->apply(image, kernels);
}

void clean(const float* maps, std::size_t classes, std::size_t height, std::size_t width,
           const float* thresholds, const Cleaning& how, std::uint8_t* masks, const RowKernels& kernels) {
  const std::size_t pixels = height * width;
  if (pixels == 0) return;
  BitImage image(height, width);
  for (std::size_t c = 0; c < classes; ++c) {
    try {
      clean_bits(maps + c * pixels, thresholds[c], how, image, kernels);
    } catch (const NotANumber& error) {
      throw NotANumber(c * pixels + error.index);
    }
    for (std::size_t y = 0; y < height; ++y) {
      kernels.bytes_of_bits(image.row(y), width, masks + c * pixels + y * width);
    }
  }
}

}  // namespace samdistill
