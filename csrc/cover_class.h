// The best choice of proposals for one class, without regard to the others.
#pragma once

#include <chrono>
#include <cstdint>
#include <vector>

#include "cover_view.h"

namespace samdistill {

// Nodes and time that are left; shared by all searches of one problem.
class Budget {
 public:
  explicit Budget(const CoverLimits& limits);

  // Counts a node. False when there is no more to spend.
  bool spend();
  CoverStop stop() const { return stop_; }
  std::int64_t spent() const { return spent_; }

  // Until the next call, at most this part of what is left may be spent; 1 lifts the limit.
  void allot(double part);

 private:
  using Clock = std::chrono::steady_clock;
  CoverLimits limits_;
  Clock::time_point begin_ = Clock::now();
  std::int64_t spent_ = 0, node_end_ = -1;
  double second_end_ = -1;
  CoverStop stop_ = CoverStop::none;
};

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
