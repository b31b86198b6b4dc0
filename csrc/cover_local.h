// Choices made better one candidate at a time.
#pragma once

#include <cstdint>
#include <vector>

#include "cover_view.h"

namespace samdistill {

struct Choice {
  bool allowed = false;               // within the bounds
  std::vector<std::uint32_t> chosen;  // candidates
  double value = -1;
};

// Adds the best candidate until the bounds or the value say stop, then improves.
Choice choose_greedily(const View& view, const ClassBounds& bounds);

// Adds, drops or swaps one candidate, the best such move each time, as long as the value grows and the bounds
// hold.
Choice improve(const View& view, const ClassBounds& bounds, std::vector<std::uint32_t> chosen);

}  // namespace samdistill
