// Any mask: labels and statistics are those of flood fill on every instruction set, and a dilation is never
// smaller, an erosion never larger, than what it was made of; one of the complement is the other's
// complement.
#include <vector>

#include "../tests/flood.h"
#include "bytes.h"

using namespace samdistill;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Bytes bytes(data, size);
  const std::size_t height = bytes.between(0, 24), width = bytes.between(0, 255), pixels = height * width;
  const bool diagonal = bytes.flag(), as_noise = bytes.flag();
  const auto left = static_cast<std::int32_t>(bytes.between(0, 70));
  const auto right = static_cast<std::int32_t>(bytes.between(0, 70)),
             above = static_cast<std::int32_t>(bytes.between(0, 9));
  std::vector<std::uint8_t> mask(pixels);
  std::vector<float> map(pixels);
  for (std::size_t i = 0; i < pixels;) {  // a byte is eight pixels, or a run of one value
    const std::uint8_t byte = bytes.next();
    const std::size_t last = i + (as_noise ? 8 : 1 + byte / 2);
    for (unsigned bit = 0; i < last && i < pixels; ++i, ++bit) {
      mask[i] = as_noise ? (byte >> bit & 1 ? byte : 0) : byte % 2;
      map[i] = static_cast<float>(mask[i] != 0 ? 129 + i % 127 : i % 129) / 256;
    }
  }
  const flood::Found expected = flood::fill(mask, map, height, width, diagonal);

  const std::vector<FootprintRow> footprint = {{-above, 0, 0}, {0, -left, right}, {1, -left / 2, right / 2}};
  std::size_t count = 0;
  const RowKernels* const* tables = all_row_kernels(&count);
  for (std::size_t t = 0; t < count; ++t) {
    const RowKernels& kernels = *tables[t];
    PROMISE(
        flood::agrees(label_mask(mask.data(), height, width, diagonal, kernels), expected, false, kernels));
    PROMISE(flood::agrees(label_map(map.data(), height, width, 0.5f, diagonal, true, kernels), expected, true,
                          kernels));
    BitImage grown(height, width), shrunk(height, width);
    for (std::size_t y = 0; y < height; ++y) {
      std::vector<std::uint8_t> row(mask.begin() + static_cast<std::ptrdiff_t>(y * width),
                                    mask.begin() + static_cast<std::ptrdiff_t>((y + 1) * width));
      kernels.bits_of_bytes(row.data(), width, grown.row(y));
      for (std::uint8_t& pixel : row) pixel = pixel == 0;
      kernels.bits_of_bytes(row.data(), width, shrunk.row(y));
    }
    Morphology(Operation::dilation, footprint).apply(grown, kernels);
    Morphology(Operation::erosion, footprint).apply(shrunk, kernels);
    std::vector<std::uint8_t> one(width), other(width);
    for (std::size_t y = 0; y < height; ++y) {
      kernels.bytes_of_bits(grown.row(y), width, one.data());
      kernels.bytes_of_bits(shrunk.row(y), width, other.data());
      for (std::size_t x = 0; x < width; ++x) {
        PROMISE(one[x] + other[x] == 1);
        PROMISE(mask[y * width + x] == 0 || one[x] == 1);
      }
    }
  }
  return 0;
}
