// Proposals for classes: each class gets so many, at most one class gets each, and the unions have the
// greatest sum of soft IoUs. Exact by branch and bound; see docs/matching.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace samdistill {

// A choice and what is asked of it. Pixels are given as atoms, those that the same proposals cover. The soft
// IoU of class c with the union U of its proposals is S / (total + N), S the sum of `inside` over the atoms
// of U and N that of `outside`; 0 where total + N is 0.
struct CoverProblem {
  std::size_t atoms = 0, proposals = 0, classes = 0;
  const std::uint8_t* covered_by = nullptr;  // atoms x proposals, 0 or 1; every atom is covered
  const double* inside = nullptr;            // atoms x classes, the sum of p; none negative
  const double* outside = nullptr;           // atoms x classes, the sum of 1 - p; none negative
  const double* total = nullptr;             // classes, the sum of p over the image
  const std::int64_t* lower = nullptr;       // classes, 0 <= lower <= upper
  const std::int64_t* upper = nullptr;
  const std::int64_t* limit = nullptr;  // classes, the most proposals of each; upper where they are counted

  // Where connected components of the union are counted instead of proposals: the pieces of proposal k are
  // first_piece[k] .. first_piece[k + 1], touching is pieces x pieces. Null where proposals are counted.
  const std::int64_t* first_piece = nullptr;
  const std::uint8_t* touching = nullptr;
};

struct CoverLimits {
  std::int64_t nodes = -1;  // negative: none
  double seconds = -1;      // negative: none; by the clock on the wall
};

enum class CoverStop { none, nodes, time };

struct CoverAnswer {
  bool found = false;                             // false: there is no choice (or none was found: see stop)
  std::vector<std::vector<std::int64_t>> chosen;  // of each class, ascending
  double value = 0;
  double upper_bound = 0;  // no choice has a greater value
  std::int64_t nodes = 0;
  CoverStop stop = CoverStop::none;  // none: the answer is proven to be the best
};

// Without limits it runs until it has proven its answer. Of equally good choices it gives the one found
// first, the same for the same input.
CoverAnswer cover(const CoverProblem& problem, const CoverLimits& limits);

}  // namespace samdistill
