// What a search may spend: nodes, and time by the clock on the wall.
#pragma once

#include <chrono>
#include <cstdint>

#include "cover.h"

namespace samdistill {

// Nodes and time that are left; shared by all searches of one problem.
class Budget {
 public:
  explicit Budget(const CoverLimits& limits) : limits_(limits) { allot(1); }

  // Counts a node. False when there is no more to spend.
  bool spend() {
    if (stop_ != CoverStop::none) return false;
    if (node_end_ >= 0 && spent_ >= node_end_) {
      stop_ = CoverStop::nodes;
    } else if (late()) {
      stop_ = CoverStop::time;
    } else {
      ++spent_;
    }
    return stop_ == CoverStop::none;
  }
  CoverStop stop() const { return stop_; }
  std::int64_t spent() const { return spent_; }

  // Whether the time is over, for what is long and no node; never so without a limit of time.
  bool late() const { return second_end_ >= 0 && elapsed() >= second_end_; }

  // Until the next call, at most this part of what is left may be spent; 1 lifts the limit.
  void allot(double part) {
    stop_ = CoverStop::none;
    if (limits_.nodes >= 0) {
      node_end_ = spent_ + static_cast<std::int64_t>(part * static_cast<double>(limits_.nodes - spent_));
    }
    if (limits_.seconds >= 0) {
      const double now = elapsed();
      second_end_ = now + part * (limits_.seconds - now);
    }
  }

 private:
  using Clock = std::chrono::steady_clock;
  double elapsed() const { return std::chrono::duration<double>(Clock::now() - begin_).count(); }

  CoverLimits limits_;
  Clock::time_point begin_ = Clock::now();
  std::int64_t spent_ = 0, node_end_ = -1;
  double second_end_ = -1;
  CoverStop stop_ = CoverStop::none;
};

}  // namespace samdistill
