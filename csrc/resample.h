// Resizing by area-aware bilinear interpolation, to the last bit as Pillow's Image.resize does it with
// BILINEAR (libImaging/Resample.c): along rows first, then along columns, each pass rounded to the pixel's
// type.
#pragma once

#include <cstddef>
#include <cstdint>

namespace samdistill {

struct Size {
  std::size_t height, width;
};

// Resizes interleaved RGB bytes; no side is 0. `out` has room for 3 * to.height * to.width.
void resize_rgb(const std::uint8_t* image, Size from, Size to, std::uint8_t* out);

// Resizes one map of floats; no side is 0.
void resize_map(const float* map, Size from, Size to, float* out);

}  // namespace samdistill
