#include "cover_class.h"

#include <algorithm>
#include <numeric>
#include <queue>
#include <utility>

#include "cover_bound.h"
#include "cover_local.h"

namespace samdistill {
namespace {

constexpr double kLeastGain = 1e-12;  // what a choice must be better by
constexpr int kRounds = 30, kPhases = 8;

// Branch and bound over one class's candidates, the most promising branch first.
class ClassSearch {
 public:
  ClassSearch(const ClassBounds& bounds, double floor, Budget& budget)
      : bounds_(bounds), level_(floor), budget_(budget) {
    answer_.upper_bound = floor;
  }

  ClassAnswer run(View view);

 private:
  // A node's children: the i-th adds order[i] and may add those behind it.
  struct Branches {
    std::vector<std::uint32_t> chosen, order;
    std::vector<double> score;  // not increasing
    double sure;                // weight of what is chosen, and rests
    double outside;             // sum of 1 - p over what is chosen
    double level;               // at which all this was computed
  };
  struct Open {
    double bound;
    std::size_t branches, next;
    bool operator<(
        const Open& other) const {  // for a heap that gives the greatest bound, the oldest of equals
      return bound < other.bound || (bound == other.bound && branches > other.branches);
    }
  };

  void accept(const View& view, const Choice& choice);
  View without_hopeless(View view) const;
  bool settle(View& view);  // shrinks the view; true when nothing better is left
  void grow(const View& view);
  void expand(const View& view, const std::vector<std::uint32_t>& chosen,
              const std::vector<std::uint32_t>& candidates);
  void add_last(const View& view, const Coverage& coverage, const std::vector<std::uint32_t>& chosen,
                const std::vector<std::uint32_t>& candidates);
  void open(std::size_t branches, std::size_t next);
  // The weight that a union must exceed to exceed a level; below 0, where anything will do, also by 0.
  double goal(double level) const { return level * total_ - (level < 0 ? 1.0 : 0.0); }
  double highest(double over, double level, double outside) const;
  std::size_t still_needed(std::size_t chosen) const {
    return bounds_.least() > chosen ? bounds_.least() - chosen : 0;
  }

  const ClassBounds& bounds_;
  double level_;  // only better choices are looked for
  double total_ = 0;
  double proven_ = 1;  // no choice has a greater value, or none exceeds the level
  Budget& budget_;
  ClassAnswer answer_;
  Relaxation* relaxation_ = nullptr;
  std::vector<Branches> branches_;
  std::priority_queue<Open> heap_;
};

void ClassSearch::accept(const View& view, const Choice& choice) {
  if (!choice.allowed || choice.value <= level_) return;
  level_ = answer_.upper_bound = choice.value;
  answer_.found = true;
  answer_.value = choice.value;
  answer_.chosen.clear();
  for (const std::uint32_t k : choice.chosen) answer_.chosen.push_back(view.proposals[k]);
  std::sort(answer_.chosen.begin(), answer_.chosen.end());
  if (relaxation_ != nullptr) relaxation_->weigh(level_ + kLeastGain);
}

// No union with candidate k has more than all of p inside, and less outside than k itself.
View ClassSearch::without_hopeless(View view) const {
  std::vector<char> keep(view.candidates(), 0);
  bool all = true;
  for (std::size_t k = 0; k < view.candidates(); ++k) {
    double outside = 0;
    for (std::size_t e = view.first[k]; e < view.first[k + 1]; ++e) outside += view.outside[view.atom[e]];
    keep[k] = level_ < 0 || view.total > (level_ + kLeastGain) * (view.total + outside);
    all = all && keep[k] != 0;
  }
  return all ? view : View(view, keep);
}

bool ClassSearch::settle(View& view) {
  for (int phase = 0; phase < kPhases; ++phase) {
    if (view.candidates() < std::max<std::size_t>(bounds_.least(), 1)) return true;
    const std::size_t most = std::min(bounds_.most, view.candidates());
    Relaxation relaxation(view, bounds_.least(), most);
    std::vector<char> dead(view.candidates(), 0);
    const double before = level_, level = level_ + kLeastGain;
    const double bound = relaxation.sharpen(level, goal(level), kRounds, dead, [&](const auto& top) {
      Coverage coverage(view);
      for (const std::uint32_t k : top) coverage.add(k);
      if (coverage.value() > level) accept(view, improve(view, bounds_, top));
      return level_ > before || budget_.late();
    });
    if (level_ == before && bound <= goal(level)) return true;
    proven_ = std::min(proven_, highest(bound - goal(level), level, 0));
    if (budget_.late()) break;
    const auto lost = static_cast<std::size_t>(std::count(dead.begin(), dead.end(), 1));
    if (level_ == before && lost * 10 <= view.candidates() && phase > 0) break;
    for (char& flag : dead) flag = flag == 0 ? 1 : 0;
    view = without_hopeless(View(view, dead));
  }
  return view.candidates() < std::max<std::size_t>(bounds_.least(), 1);
}

// Where nothing is chosen and nothing can be gained, total + outside may be 0; every IoU is at most 1.
double ClassSearch::highest(double over, double level, double outside) const {
  const double least = total_ + outside;
  return least > 0 ? std::min(level + over / least, total_ / least) : 1.0;
}

void ClassSearch::open(std::size_t index, std::size_t next) {
  Branches& b = branches_[index];
  const std::size_t more = bounds_.most - b.chosen.size() - 1, needed = still_needed(b.chosen.size() + 1);
  double bound = -1;
  if (next < b.order.size() && b.order.size() - next - 1 >= needed) {
    double sum = b.sure + b.score[next];
    for (std::size_t i = 0; i < more && next + 1 + i < b.order.size(); ++i) {
      if (i >= needed && b.score[next + 1 + i] <= 0) break;
      sum += b.score[next + 1 + i];
    }
    const double over = sum - goal(b.level);
    if (over > 0) bound = highest(over, b.level, b.outside);
  }
  if (bound > level_ + kLeastGain) {
    heap_.push({bound, index, next});
  } else {
    b = Branches();  // none of those behind it is better; gives the memory back
  }
}

void ClassSearch::add_last(const View& view, const Coverage& coverage,
                           const std::vector<std::uint32_t>& chosen,
                           const std::vector<std::uint32_t>& candidates) {
  for (const std::uint32_t k : candidates) {
    const double value = coverage.value_with(k);
    if (value <= level_ + kLeastGain) continue;
    std::vector<std::uint32_t> trial = chosen;
    trial.push_back(k);
    if (bounds_.allow(view, trial)) accept(view, improve(view, bounds_, std::move(trial)));
  }
}

void ClassSearch::expand(const View& view, const std::vector<std::uint32_t>& chosen,
                         const std::vector<std::uint32_t>& candidates) {
  Coverage coverage(view);
  for (const std::uint32_t k : chosen) coverage.add(k);
  if (coverage.value() > level_ + kLeastGain && bounds_.allow(view, chosen)) {
    accept(view, improve(view, bounds_, chosen));
  }
  if (chosen.size() >= bounds_.most || candidates.empty()) return;
  const std::size_t more = bounds_.most - chosen.size(), needed = still_needed(chosen.size());
  if (more == 1) return add_last(view, coverage, chosen, candidates);

  const Relaxation& relaxation = *relaxation_;
  const double level = level_ + kLeastGain, sought = goal(level);
  const double* const scores = relaxation.scores(more);
  std::vector<double> score(view.candidates());
  std::vector<std::uint32_t> order;
  std::vector<char> seen(view.atoms(), 0);
  double sure = coverage.inside() - level * coverage.outside();
  for (const std::uint32_t k : candidates) {
    double sum = 0, outside = coverage.outside();
    for (std::size_t e = view.first[k]; e < view.first[k + 1]; ++e) {
      const std::size_t j = view.atom[e];
      if (coverage.covered(j)) continue;
      sum += scores[e];
      outside += view.outside[j];
      if (seen[j] == 0) seen[j] = 1, sure += relaxation.rest(j);
    }
    score[k] = sum;
    if (level < 0 || total_ > level * (total_ + outside)) order.push_back(k);
  }
  std::sort(order.begin(), order.end(), [&score](std::uint32_t x, std::uint32_t y) {
    return score[x] > score[y] || (score[x] == score[y] && x < y);
  });
  if (order.size() < needed) return;
  // The bound with the best, and with each of the others in the place of the last of them.
  double bound = sure;
  std::size_t count = 0;
  for (; count < more && count < order.size() && (count < needed || score[order[count]] > 0); ++count) {
    bound += score[order[count]];
  }
  if (bound <= sought) return;
  const double worst = count == 0 ? 0.0 : score[order[count - 1]];
  const double freed = count == more ? worst : std::min(worst, 0.0);
  std::size_t kept = count;
  while (kept < order.size() && bound - freed + score[order[kept]] > sought) ++kept;
  order.resize(kept);
  Branches branches{chosen, order, {}, sure, coverage.outside(), level};
  for (const std::uint32_t k : order) branches.score.push_back(score[k]);
  branches_.push_back(std::move(branches));
  open(branches_.size() - 1, 0);
}

void ClassSearch::grow(const View& view) {
  const std::size_t most = std::min(bounds_.most, view.candidates());
  Relaxation relaxation(view, bounds_.least(), most);
  std::vector<char> dead(view.candidates(), 0);
  const double level = level_ + kLeastGain;
  const double highest_sum =
      relaxation.sharpen(level, goal(level), 2 * kRounds, dead, [&](const auto&) { return budget_.late(); });
  double bound = highest(highest_sum - goal(level), level, 0);  // of what is not searched yet
  if (!budget_.spend()) {
    if (budget_.stop() == CoverStop::time) bound = std::min(bound, proven_);
  } else {
    relaxation_ = &relaxation;
    relaxation.weigh(level);
    std::vector<std::uint32_t> all;
    for (std::uint32_t k = 0; k < view.candidates(); ++k) {
      if (dead[k] == 0) all.push_back(k);
    }
    expand(view, {}, all);
    while (true) {
      bound = heap_.empty() ? -1 : heap_.top().bound;
      if (bound <= level_ + kLeastGain || !budget_.spend()) break;
      const Open next = heap_.top();
      heap_.pop();
      const Branches& from = branches_[next.branches];
      std::vector<std::uint32_t> chosen = from.chosen;
      chosen.push_back(from.order[next.next]);
      const std::vector<std::uint32_t> rest(from.order.begin() + static_cast<std::ptrdiff_t>(next.next) + 1,
                                            from.order.end());
      open(next.branches, next.next + 1);
      expand(view, chosen, rest);
    }
  }
  relaxation_ = nullptr;
  answer_.upper_bound = std::max(bound, answer_.upper_bound);
}

ClassAnswer ClassSearch::run(View view) {
  total_ = view.total;
  if (bounds_.most == 0 || view.candidates() == 0) {
    accept(view, improve(view, bounds_, {}));
    return answer_;
  }
  if (bounds_.least() <= 1 && !bounds_.counts_pieces()) {
    // The best single one first: what it rules out need not be looked at again.
    std::vector<std::uint32_t> best(1, 0);
    double value = -1;
    const Coverage nothing(view);
    for (std::uint32_t k = 0; k < view.candidates() && bounds_.most > 0; ++k) {
      const double single = nothing.value_with(k);
      if (single > value) value = single, best[0] = k;
    }
    if (value >= 0) accept(view, {true, best, value});
    if (bounds_.least() == 0) accept(view, {true, {}, 0.0});
    view = without_hopeless(std::move(view));
  }
  accept(view, choose_greedily(view, bounds_));
  view = without_hopeless(std::move(view));
  if (!settle(view)) grow(view);
  answer_.upper_bound = std::max(answer_.upper_bound, level_);
  return answer_;
}

ClassAnswer as_answer(const View& view, const Choice& choice) {
  ClassAnswer answer;
  answer.found = choice.allowed;
  answer.value = choice.value;
  answer.upper_bound = 1;
  for (const std::uint32_t k : choice.chosen) answer.chosen.push_back(view.proposals[k]);
  std::sort(answer.chosen.begin(), answer.chosen.end());
  return answer;
}

}  // namespace

ClassAnswer cover_class(const ClassBounds& bounds, const std::vector<std::uint32_t>& proposals, double floor,
                        Budget& budget) {
  return ClassSearch(bounds, floor, budget).run(View(*bounds.problem, bounds.of_class, proposals));
}

ClassAnswer cover_class_roughly(const ClassBounds& bounds, const std::vector<std::uint32_t>& proposals) {
  const View view(*bounds.problem, bounds.of_class, proposals);
  return as_answer(view, choose_greedily(view, bounds));
}

ClassAnswer better_class(const ClassBounds& bounds, const std::vector<std::uint32_t>& proposals,
                         const std::vector<std::uint32_t>& chosen) {
  const View view(*bounds.problem, bounds.of_class, proposals);
  std::vector<std::uint32_t> candidates;
  for (const std::uint32_t k : chosen) {
    const auto place = std::lower_bound(view.proposals.begin(), view.proposals.end(), k);
    candidates.push_back(static_cast<std::uint32_t>(place - view.proposals.begin()));
  }
  return as_answer(view, improve(view, bounds, std::move(candidates)));
}

}  // namespace samdistill
