// Any filtered rows: undone as the specification says, or refused.
#include <vector>

#include "../tests/unfilter.h"
#include "bytes.h"
#include "png.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Bytes bytes(data, size);
  const std::size_t pixels[] = {1, 2, 3, 4, 6, 8};
  const std::size_t pixel = pixels[bytes.between(0, 5)], height = bytes.between(1, 16);
  const std::size_t row_bytes = pixel * bytes.between(1, 40);
  std::vector<std::uint8_t> rows(height * (row_bytes + 1)), expected, found(height * row_bytes);
  for (std::uint8_t& byte : rows) byte = bytes.next();
  const bool known = unfilter(rows, height, row_bytes, pixel, &expected);
  PROMISE(samdistill::unfilter_png(rows.data(), height, row_bytes, pixel, found.data()) == known);
  PROMISE(!known || found == expected);
  return 0;
}
