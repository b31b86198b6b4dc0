// PNG's filters undone byte by byte, straight from the specification.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <vector>

// False when a filter's number is unknown.
inline bool unfilter(const std::vector<std::uint8_t>& rows, std::size_t height, std::size_t bytes,
                     std::size_t pixel, std::vector<std::uint8_t>* out) {
  out->assign(height * bytes, 0);
  for (std::size_t y = 0; y < height; ++y) {
    const std::uint8_t filter = rows[y * (bytes + 1)];
    if (filter > 4) return false;
    for (std::size_t i = 0; i < bytes; ++i) {
      const int a = i < pixel ? 0 : (*out)[y * bytes + i - pixel];
      const int b = y == 0 ? 0 : (*out)[(y - 1) * bytes + i];
      const int c = y == 0 || i < pixel ? 0 : (*out)[(y - 1) * bytes + i - pixel];
      const int p = a + b - c, pa = std::abs(p - a), pb = std::abs(p - b), pc = std::abs(p - c);
      const int paeth = pa <= pb && pa <= pc ? a : pb <= pc ? b : c;
      const int guess[] = {0, a, b, (a + b) / 2, paeth};
      (*out)[y * bytes + i] = static_cast<std::uint8_t>(rows[y * (bytes + 1) + 1 + i] + guess[filter]);
    }
  }
  return true;
}
