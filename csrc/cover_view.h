// One class's part of a cover problem: some candidates, and the atoms they make of the image.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cover.h"
#include "cover_budget.h"

namespace samdistill {

// Candidates and atoms know each other through entries, one for each pair of a candidate and an atom it
// covers. Atoms that the same candidates cover are one.
class View {
 public:
  View(const CoverProblem& problem, std::size_t of_class, std::vector<std::uint32_t> proposals);
  View(const View& whole, const std::vector<char>& keep);  // of its candidates, those to keep

  std::size_t candidates() const { return proposals.size(); }
  std::size_t atoms() const { return inside.size(); }

  double total = 0;                      // the sum of p over the image
  std::vector<std::uint32_t> proposals;  // of each candidate, ascending
  std::vector<double> inside, outside;   // of each atom, the sums of p and of 1 - p
  std::vector<std::uint32_t> first;      // entries of candidate k: first[k] .. first[k + 1],
  std::vector<std::uint32_t> atom;       // and the atom of each
  std::vector<std::uint32_t> first_of_atom, entry_of_atom;  // the same entries by atom
  std::vector<std::uint32_t> candidate;                     // of each entry

 private:
  class Merger;
  void finish(const Merger& merged);
};

// What a set of candidates covers. Adding and taking away cost its atoms.
class Coverage {
 public:
  explicit Coverage(const View& view) : view_(&view), times_(view.atoms(), 0) {}

  void add(std::size_t k);
  void remove(std::size_t k);
  bool covered(std::size_t atom) const { return times_[atom] != 0; }
  double value() const { return ratio(inside_, outside_); }
  double value_with(std::size_t k) const;
  double inside() const { return inside_; }
  double outside() const { return outside_; }

 private:
  double ratio(double inside, double outside) const {
    return inside > 0 ? inside / (view_->total + outside) : 0.0;
  }

  const View* view_;
  std::vector<std::uint32_t> times_;
  double inside_ = 0, outside_ = 0;
};

// How many proposals one class may have, and what may be spent on choosing them.
struct ClassBounds {
  const CoverProblem* problem;
  std::size_t of_class;
  std::size_t most;  // proposals
  const Budget* budget;

  bool counts_pieces() const { return problem->first_piece != nullptr; }
  std::size_t least() const {  // proposals
    return counts_pieces() ? (problem->lower[of_class] > 0 ? 1 : 0)
                           : static_cast<std::size_t>(problem->lower[of_class]);
  }

  // Whether so many candidates, or so many components of their union, are within the bounds.
  bool allow(const View& view, const std::vector<std::uint32_t>& chosen) const;
};

}  // namespace samdistill
