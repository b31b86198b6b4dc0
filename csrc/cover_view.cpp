#include "cover_view.h"

#include <algorithm>
#include <utility>

namespace samdistill {

// Collects atoms as ascending lists of candidates, and adds up those with equal lists.
class View::Merger {
 public:
  explicit Merger(std::size_t expected) : first_(1, 0) {
    std::size_t size = 16;
    while (size < 2 * expected) size *= 2;
    slots_.assign(size, empty);
  }

  void add(const std::vector<std::uint32_t>& list, double inside, double outside) {
    if (list.empty()) return;
    std::uint64_t hash = 0x9e3779b97f4a7c15;
    for (const std::uint32_t k : list) hash = (hash ^ k) * 0xff51afd7ed558ccd, hash ^= hash >> 32;
    std::size_t slot = hash & (slots_.size() - 1);
    for (; slots_[slot] != empty; slot = (slot + 1) & (slots_.size() - 1)) {
      const std::size_t j = slots_[slot];
      if (first_[j + 1] - first_[j] != list.size()) continue;
      if (!std::equal(list.begin(), list.end(), lists_.begin() + first_[j])) continue;
      inside_[j] += inside;
      outside_[j] += outside;
      return;
    }
    slots_[slot] = static_cast<std::uint32_t>(inside_.size());
    lists_.insert(lists_.end(), list.begin(), list.end());
    first_.push_back(static_cast<std::uint32_t>(lists_.size()));
    inside_.push_back(inside);
    outside_.push_back(outside);
  }

  std::vector<std::uint32_t> lists_, first_;
  std::vector<double> inside_, outside_;

 private:
  static constexpr std::uint32_t empty = 0xffffffff;
  std::vector<std::uint32_t> slots_;
};

View::View(const CoverProblem& problem, std::size_t of_class, std::vector<std::uint32_t> those)
    : total(problem.total[of_class]), proposals(std::move(those)) {
  Merger merged(problem.atoms);
  std::vector<std::uint32_t> list;
  for (std::size_t j = 0; j < problem.atoms; ++j) {
    const std::uint8_t* row = problem.covered_by + j * problem.proposals;
    list.clear();
    for (std::size_t k = 0; k < proposals.size(); ++k) {
      if (row[proposals[k]] != 0) list.push_back(static_cast<std::uint32_t>(k));
    }
    const std::size_t place = j * problem.classes + of_class;
    merged.add(list, problem.inside[place], problem.outside[place]);
  }
  finish(merged);
}

View::View(const View& whole, const std::vector<char>& keep) : total(whole.total) {
  std::vector<std::uint32_t> place(whole.candidates());
  for (std::size_t k = 0; k < whole.candidates(); ++k) {
    place[k] = static_cast<std::uint32_t>(proposals.size());
    if (keep[k] != 0) proposals.push_back(whole.proposals[k]);
  }
  Merger merged(whole.atoms());
  std::vector<std::uint32_t> list;
  for (std::size_t j = 0; j < whole.atoms(); ++j) {
    list.clear();
    for (std::size_t i = whole.first_of_atom[j]; i < whole.first_of_atom[j + 1]; ++i) {
      const std::uint32_t k = whole.candidate[whole.entry_of_atom[i]];
      if (keep[k] != 0) list.push_back(place[k]);
    }
    merged.add(list, whole.inside[j], whole.outside[j]);
  }
  finish(merged);
}

void View::finish(const Merger& merged) {
  inside = merged.inside_;
  outside = merged.outside_;
  first_of_atom = merged.first_;
  const std::size_t entries = merged.lists_.size();
  first.assign(candidates() + 1, 0);
  for (const std::uint32_t k : merged.lists_) ++first[k + 1];
  for (std::size_t k = 0; k < candidates(); ++k) first[k + 1] += first[k];
  std::vector<std::uint32_t> next(first.begin(), first.end() - 1);
  atom.resize(entries);
  candidate.resize(entries);
  entry_of_atom.resize(entries);
  for (std::size_t j = 0; j < atoms(); ++j) {
    for (std::size_t i = first_of_atom[j]; i < first_of_atom[j + 1]; ++i) {
      const std::uint32_t k = merged.lists_[i], entry = next[k]++;
      atom[entry] = static_cast<std::uint32_t>(j);
      candidate[entry] = k;
      entry_of_atom[i] = entry;
    }
  }
}

void Coverage::add(std::size_t k) {
  for (std::size_t e = view_->first[k]; e < view_->first[k + 1]; ++e) {
    const std::size_t j = view_->atom[e];
    if (times_[j]++ != 0) continue;
    inside_ += view_->inside[j];
    outside_ += view_->outside[j];
  }
}

void Coverage::remove(std::size_t k) {
  for (std::size_t e = view_->first[k]; e < view_->first[k + 1]; ++e) {
    const std::size_t j = view_->atom[e];
    if (--times_[j] != 0) continue;
    inside_ -= view_->inside[j];
    outside_ -= view_->outside[j];
  }
}

double Coverage::value_with(std::size_t k) const {
  double more_inside = inside_, more_outside = outside_;
  for (std::size_t e = view_->first[k]; e < view_->first[k + 1]; ++e) {
    const std::size_t j = view_->atom[e];
    if (times_[j] != 0) continue;
    more_inside += view_->inside[j];
    more_outside += view_->outside[j];
  }
  return ratio(more_inside, more_outside);
}

bool ClassBounds::allow(const View& view, const std::vector<std::uint32_t>& chosen) const {
  if (chosen.size() > most) return false;
  if (!counts_pieces()) return chosen.size() >= least();
  std::vector<std::size_t> pieces;
  for (const std::uint32_t k : chosen) {
    const std::uint32_t proposal = view.proposals[k];
    for (std::int64_t p = problem->first_piece[proposal]; p < problem->first_piece[proposal + 1]; ++p) {
      pieces.push_back(static_cast<std::size_t>(p));
    }
  }
  const auto all = static_cast<std::size_t>(problem->first_piece[problem->proposals]);
  std::int64_t components = 0;
  while (!pieces.empty()) {
    ++components;
    std::vector<std::size_t> reached{pieces.back()};
    pieces.pop_back();
    for (std::size_t i = 0; i < reached.size(); ++i) {
      const std::uint8_t* touches = problem->touching + reached[i] * all;
      const auto apart =
          std::partition(pieces.begin(), pieces.end(), [touches](std::size_t p) { return touches[p] == 0; });
      reached.insert(reached.end(), apart, pieces.end());
      pieces.erase(apart, pieces.end());
    }
  }
  return components >= problem->lower[of_class] && components <= problem->upper[of_class];
}

}  // namespace samdistill
