// How much a few more candidates can add to a union at most.
//
// At a level of IoU, an atom weighs w = inside - level * outside, and a union reaches the level when its
// atoms weigh level * total. A weight above 0 counts once however many candidates cover the atom: it is
// split, one part of it is given to everybody who covers the atom and the rest to nobody, for certain. A
// weight below 0 is shared out among the candidates so that no r of them pay more than all of it, since no
// more than r will be added. Then a candidate has a score by itself, and no r of them add more than the r
// greatest scores and all the rests. Any split and any shares are valid; `sharpen` looks for good ones (the
// Lagrangian dual of the problem, by subgradients).
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "cover_view.h"

namespace samdistill {

class Relaxation {
 public:
  Relaxation(const View& view, std::size_t least, std::size_t most);

  // Looks for `rounds` rounds, from the split it has, for the least bound on any choice of least .. most
  // candidates; stops early where that is `goal` or below. A candidate with which goal cannot be exceeded is
  // marked in `dead`. Each round's best scored candidates are shown to `look`; where it returns true the
  // search ends. Returns the least bound.
  double sharpen(double level, double goal, int rounds, std::vector<char>& dead,
                 const std::function<bool(const std::vector<std::uint32_t>&)>& look);

  // From now on the functions below are about this level.
  void weigh(double level);
  double weight(std::size_t atom) const { return weight_[atom]; }
  // What nobody is given of an atom.
  double rest(std::size_t atom) const { return rest_[atom]; }
  // What each entry adds to its candidate's score when r >= 2 more candidates may come (with one more, its
  // weight is what an atom adds).
  const double* scores(std::size_t r) const {
    return scores_[r < scores_.size() ? r : scores_.size() - 1].data();
  }

 private:
  static constexpr std::size_t kShareLevels = 8;  // from so many on, the shares are those for `most`

  void share(std::size_t atom, std::size_t r, double* shares) const;

  const View& view_;
  std::size_t least_, most_;
  std::vector<double> given_;  // of each atom, the part of its weight that is given out
  std::vector<double> claim_;  // of each entry, for shares of weights below 0; 1 over an atom
  std::vector<double> weight_, rest_;
  std::vector<std::vector<double>> factors_, scores_;  // by r, of each entry; from [2]
  mutable std::vector<double> sorted_;
};

}  // namespace samdistill
