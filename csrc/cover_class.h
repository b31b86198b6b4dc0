// The best choice of proposals for one class, without regard to the others.
#pragma once

#include <cstdint>
#include <vector>

#include "cover_view.h"

namespace samdistill {

struct ClassAnswer {
  bool found = false;                 // a choice whose value exceeds the floor
  std::vector<std::uint32_t> chosen;  // proposals, ascending
  double value = 0;
  double upper_bound = 0;  // no choice has a greater value; at least the floor
};

// Looks for the best choice among `proposals` (ascending) whose value exceeds `floor`; -1 for any.
ClassAnswer cover_class(const ClassBounds& bounds, const std::vector<std::uint32_t>& proposals, double floor,
                        Budget& budget);

// A good choice, quickly: greedy, then adding, dropping and swapping one at a time.
ClassAnswer cover_class_roughly(const ClassBounds& bounds, const std::vector<std::uint32_t>& proposals);

// A choice among `proposals` (both ascending) that is within the bounds, bettered one at a time.
ClassAnswer better_class(const ClassBounds& bounds, const std::vector<std::uint32_t>& proposals,
                         const std::vector<std::uint32_t>& chosen);

}  // namespace samdistill
