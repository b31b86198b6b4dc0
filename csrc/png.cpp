#include "png.h"

#include <cstdlib>
#include <cstring>
#include <vector>

#include "dispatch.h"

namespace samdistill {
namespace {

enum Filter : std::uint8_t { none, sub, up, average, paeth };

inline SAMDISTILL_INLINE int predicted(int left, int above, int corner) {
  const int from_left = std::abs(above - corner), from_above = std::abs(left - corner);
  const int from_corner = std::abs(left + above - 2 * corner);
  const int nearer = from_left <= from_above ? left : above;
  return (from_left <= from_above ? from_left : from_above) <= from_corner ? nearer : corner;
}

// Channels are a constant, so that a pixel's stay in registers.
template <std::size_t kBytes>
inline SAMDISTILL_INLINE void undo_paeth(const std::uint8_t* row, const std::uint8_t* above,
                                         std::size_t bytes, std::uint8_t* out) {
  int left[kBytes] = {}, corner[kBytes] = {};
  for (std::size_t i = 0; i < bytes; i += kBytes) {
    for (std::size_t c = 0; c < kBytes; ++c) {
      const int top = above[i + c];
      left[c] = (row[i + c] + predicted(left[c], top, corner[c])) & 255;
      corner[c] = top;
      out[i + c] = static_cast<std::uint8_t>(left[c]);
    }
  }
}

// Four rows of RGB in a row, each a pixel behind the one above it, so that no lane waits for another: a
// pixel's group of four lanes holds something, red, green, blue.
constexpr std::size_t kRgb = 3, kTogether = 4, kPad = 16;
using Lanes = std::int16_t __attribute__((vector_size(32)));
using LaneBytes = std::uint8_t __attribute__((vector_size(16)));

// rows: the four filtered rows, each after its filter's number; above: padded; out: four padded rows.
SAMDISTILL_CLONES void undo_four_paeths(const std::uint8_t* const* rows, const std::uint8_t* above,
                                        std::size_t width, std::uint8_t* const* out) {
  Lanes left = {}, corner = {};
  for (std::size_t step = 0; step < width + kTogether - 1; ++step) {
    LaneBytes given = {}, top = {};
    for (std::size_t r = 0; r < kTogether;
         ++r) {  // a row's first three bytes begin behind its filter's number
      const std::size_t pixel = step - r;
      if (pixel < width)
        std::memcpy(reinterpret_cast<std::uint8_t*>(&given) + 4 * r, rows[r] + kRgb * pixel - 1, 4);
    }
    std::memcpy(&top, above + kRgb * step - 1, 4);
    const Lanes shifted = __builtin_shufflevector(__builtin_convertvector(top, Lanes), left, 0, 1, 2, 3, 16,
                                                  17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27);
    const Lanes from_left = shifted - corner, from_above = left - corner;
    const Lanes from_corner = from_left + from_above;
    const Lanes a = from_left < 0 ? -from_left : from_left, b = from_above < 0 ? -from_above : from_above;
    const Lanes c = from_corner < 0 ? -from_corner : from_corner;
    const Lanes nearer = a <= b ? left : shifted, least = a <= b ? a : b;
    left = (__builtin_convertvector(given, Lanes) + (least <= c ? nearer : corner)) & 255;
    corner = shifted;
    const LaneBytes found = __builtin_convertvector(left, LaneBytes);
    for (std::size_t r = 0; r < kTogether; ++r) {
      std::uint32_t group;
      std::memcpy(&group, reinterpret_cast<const std::uint8_t*>(&found) + 4 * r, 4);
      group >>= 8;
      std::memcpy(out[r] + kRgb * step - kRgb * r, &group, 4);
    }
  }
}

// Rows with room for a group before and behind, and what they are filled from.
class FourRows {
 public:
  explicit FourRows(std::size_t bytes) : bytes_(bytes) {
    for (auto& row : padded_) row.assign(bytes + 2 * kPad, 0);
  }

  // Undoes the next four rows, if each has the filter paeth.
  bool undo(const std::uint8_t* rows, const std::uint8_t* above, std::uint8_t* out) {
    const std::uint8_t* given[kTogether];
    std::uint8_t* found[kTogether];
    for (std::size_t r = 0; r < kTogether; ++r, rows += bytes_ + 1) {
      if (rows[0] != paeth) return false;
      given[r] = rows + 1;
      found[r] = padded_[r + 1].data() + kPad;
    }
    std::memcpy(padded_[0].data() + kPad, above, bytes_);
    undo_four_paeths(given, padded_[0].data() + kPad, bytes_ / kRgb, found);
    for (std::size_t r = 0; r < kTogether; ++r) std::memcpy(out + r * bytes_, found[r], bytes_);
    return true;
  }

 private:
  std::size_t bytes_;
  std::vector<std::uint8_t> padded_[kTogether + 1];
};

template <std::size_t kBytes>
inline SAMDISTILL_INLINE bool undo(const std::uint8_t* rows, std::size_t height, std::size_t bytes,
                                   std::uint8_t* out) {
  const std::vector<std::uint8_t> nothing(bytes, 0);
  const std::uint8_t* above = nothing.data();
  FourRows four(kBytes == kRgb ? bytes : 0);
  for (std::size_t y = 0; y < height; ++y, rows += bytes + 1, above = out, out += bytes) {
    if (kBytes == kRgb && y + kTogether <= height && four.undo(rows, above, out)) {
      y += kTogether - 1, rows += (kTogether - 1) * (bytes + 1), out += (kTogether - 1) * bytes;
      continue;
    }
    const std::uint8_t* row = rows + 1;
    switch (rows[0]) {
      case none:
        std::memcpy(out, row, bytes);
        break;
      case sub:
        std::memcpy(out, row, kBytes);
        for (std::size_t i = kBytes; i < bytes; ++i)
          out[i] = static_cast<std::uint8_t>(row[i] + out[i - kBytes]);
        break;
      case up:
        for (std::size_t i = 0; i < bytes; ++i) out[i] = static_cast<std::uint8_t>(row[i] + above[i]);
        break;
      case average:
        for (std::size_t i = 0; i < bytes; ++i) {
          const int left = i < kBytes ? 0 : out[i - kBytes];
          out[i] = static_cast<std::uint8_t>(row[i] + (left + above[i]) / 2);
        }
        break;
      case paeth:
        undo_paeth<kBytes>(row, above, bytes, out);
        break;
      default:
        return false;
    }
  }
  return true;
}

}  // namespace

bool unfilter_png(const std::uint8_t* rows, std::size_t height, std::size_t row_bytes,
                  std::size_t pixel_bytes, std::uint8_t* out) {
  switch (pixel_bytes) {
    case 1:
      return undo<1>(rows, height, row_bytes, out);
    case 2:
      return undo<2>(rows, height, row_bytes, out);
    case 3:
      return undo<3>(rows, height, row_bytes, out);
    case 4:
      return undo<4>(rows, height, row_bytes, out);
    case 6:
      return undo<6>(rows, height, row_bytes, out);
    default:
      return undo<8>(rows, height, row_bytes, out);
  }
}

}  // namespace samdistill
