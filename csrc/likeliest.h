// The likeliest pixels of a set of runs, ties decided by a keyed permutation, at a distance from each other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace samdistill {

struct Run {
  std::int32_t row, begin, end;  // pixels begin .. end - 1 of a row
};

struct Pixel {
  std::int32_t x, y;
};

// Up to `count` pixels of the runs. The first is the one of highest value, each next one the highest among
// those at least `spread` (and at least one pixel) away from all before it. Among equal values the pixel
// whose index (row * width + x) the permutation of `seed` sends highest wins, so the answer depends on
// neither the order nor the cutting of the runs. Needs no sorting: each run keeps its champion, and only the
// runs near a chosen pixel elect a new one.
std::vector<Pixel> likeliest_pixels(const float* map, std::size_t width, const std::vector<Run>& runs,
                                    std::int32_t count, double spread, std::uint64_t seed);

}  // namespace samdistill
