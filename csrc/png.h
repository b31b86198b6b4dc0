// Undoing PNG's row filters (PNG specification, section 9). Inflating and the chunks are the caller's matter.
#pragma once

#include <cstddef>
#include <cstdint>

namespace samdistill {

// Turns `height` filtered rows, each its filter's number and row_bytes bytes, into rows of row_bytes bytes.
// pixel_bytes is 1, 2, 3, 4, 6 or 8 and divides row_bytes. Returns false when a filter's number is unknown.
bool unfilter_png(const std::uint8_t* rows, std::size_t height, std::size_t row_bytes,
                  std::size_t pixel_bytes, std::uint8_t* out);

}  // namespace samdistill
