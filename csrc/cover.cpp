// Each class is solved by itself. What that gives in sum is a bound for all; and where no proposal is wanted
// twice, it is the answer. Otherwise one of two classes that want a proposal has to do without it: two
// branches, each with one class to be solved again.
#include "cover.h"

#include <algorithm>
#include <limits>
#include <map>
#include <numeric>
#include <queue>
#include <utility>

#include "assignment.h"
#include "cover_class.h"

namespace samdistill {
namespace {

constexpr double kLeastGain = 1e-12;
using Indices = std::vector<std::uint32_t>;

class CoverSearch {
 public:
  CoverSearch(const CoverProblem& problem, const CoverLimits& limits) : problem_(problem), budget_(limits) {}
  CoverAnswer run();

 private:
  // What each class must do without, and the best it can then have.
  struct Node {
    double bound;
    std::size_t age;
    std::vector<Indices> forbidden;
    std::vector<ClassAnswer> answers;
    bool operator<(const Node& other) const {
      return bound < other.bound || (bound == other.bound && age > other.age);
    }
  };

  ClassBounds bounds(std::size_t c, std::size_t most) const {
    return {&problem_, c, std::min(most, static_cast<std::size_t>(problem_.limit[c])), &budget_};
  }
  Indices without(const Indices& forbidden) const;
  void offer(const std::vector<ClassAnswer>& answers);
  void repair(const Node& node);
  void offer_singles();
  bool first_conflict(const Node& node, std::uint32_t& proposal, std::size_t& one, std::size_t& other) const;
  void branch(const Node& node, std::uint32_t proposal, std::size_t loser);

  const CoverProblem& problem_;
  Budget budget_;
  CoverAnswer best_;
  std::priority_queue<Node> open_;
  std::size_t age_ = 0;
};

Indices CoverSearch::without(const Indices& forbidden) const {
  Indices rest;
  for (std::uint32_t k = 0; k < problem_.proposals; ++k) {
    if (!std::binary_search(forbidden.begin(), forbidden.end(), k)) rest.push_back(k);
  }
  return rest;
}

void CoverSearch::offer(const std::vector<ClassAnswer>& answers) {
  double value = 0;
  for (const ClassAnswer& answer : answers) value += answer.value;
  if (best_.found && value <= best_.value + kLeastGain) return;
  best_.found = true;
  best_.value = value;
  best_.chosen.clear();
  for (const ClassAnswer& answer : answers)
    best_.chosen.emplace_back(answer.chosen.begin(), answer.chosen.end());
}

// Gives contested proposals to the classes in turn, the one with the most to lose first, and lets each choose
// quickly among what the others have left; proposals are kept back for the lower bounds of those to come.
void CoverSearch::repair(const Node& node) {
  const std::size_t classes = problem_.classes;
  std::vector<std::size_t> order(classes);
  std::iota(order.begin(), order.end(), std::size_t{0});
  for (std::size_t lead = 0; lead < classes; ++lead) {
    std::vector<ClassAnswer> answers(classes);
    Indices taken;
    std::size_t reserve = 0;
    for (std::size_t c = 0; c < classes; ++c) reserve += bounds(c, problem_.proposals).least();
    bool complete = true;
    for (std::size_t turn = 0; turn < classes && complete; ++turn) {
      const std::size_t c = order[(lead + turn) % classes];
      const Indices& wanted = node.answers[c].chosen;
      reserve -= bounds(c, problem_.proposals).least();
      const std::size_t room =
          problem_.proposals - taken.size() - std::min(reserve, problem_.proposals - taken.size());
      const bool free = node.answers[c].found && wanted.size() <= room &&
                        std::none_of(wanted.begin(), wanted.end(), [&taken](std::uint32_t k) {
                          return std::binary_search(taken.begin(), taken.end(), k);
                        });
      answers[c] = free ? node.answers[c] : cover_class_roughly(bounds(c, room), without(taken));
      complete = answers[c].found;
      taken.insert(taken.end(), answers[c].chosen.begin(), answers[c].chosen.end());
      std::sort(taken.begin(), taken.end());
    }
    if (complete) offer(answers);
    if (best_.found && budget_.late()) return;
  }
}

// Where components are counted, classes that take turns may leave the last one nothing within its bounds. One
// proposal that is within them for each class, by assignment, is an answer all the same; each betters its
// own.
void CoverSearch::offer_singles() {
  const std::size_t classes = problem_.classes, count = problem_.proposals, columns = count + classes;
  std::vector<double> weights(classes * columns, -std::numeric_limits<double>::infinity());
  for (std::size_t c = 0; c < classes; ++c) {
    const ClassBounds own = bounds(c, count);
    const View view(problem_, c, without({}));
    const Coverage nothing(view);
    for (std::uint32_t k = 0; k < count; ++k) {
      if (own.allow(view, {k})) weights[c * columns + k] = nothing.value_with(k);
    }
    if (own.allow(view, {})) weights[c * columns + count + c] = 0;
  }
  std::vector<std::int64_t> rows(classes), chosen(classes);
  if (assign(weights.data(), classes, columns, true, rows.data(), chosen.data()) != AssignStatus::ok) return;
  std::vector<ClassAnswer> answers(classes);
  for (std::size_t c = 0; c < classes; ++c) {
    if (chosen[c] < static_cast<std::int64_t>(count))
      answers[c].chosen.push_back(static_cast<std::uint32_t>(chosen[c]));
  }
  for (std::size_t c = 0; c < classes; ++c) {
    Indices taken;
    for (std::size_t other = 0; other < classes; ++other) {
      if (other != c) taken.insert(taken.end(), answers[other].chosen.begin(), answers[other].chosen.end());
    }
    std::sort(taken.begin(), taken.end());
    answers[c] = better_class(bounds(c, count), without(taken), answers[c].chosen);
  }
  offer(answers);
}

// The contested proposal with the least index, and the first two classes that want it.
bool CoverSearch::first_conflict(const Node& node, std::uint32_t& proposal, std::size_t& one,
                                 std::size_t& other) const {
  std::map<std::uint32_t, std::vector<std::size_t>> wanted_by;
  for (std::size_t c = 0; c < problem_.classes; ++c) {
    for (const std::uint32_t k : node.answers[c].chosen) wanted_by[k].push_back(c);
  }
  for (const auto& [k, classes] : wanted_by) {
    if (classes.size() < 2) continue;
    proposal = k, one = classes[0], other = classes[1];
    return true;
  }
  return false;
}

void CoverSearch::branch(const Node& node, std::uint32_t proposal, std::size_t loser) {
  Node child = node;
  child.age = ++age_;
  Indices& forbidden = child.forbidden[loser];
  forbidden.insert(std::lower_bound(forbidden.begin(), forbidden.end(), proposal), proposal);
  // Better than the best so far it is only if the loser gets more than this.
  const double others = node.bound - node.answers[loser].upper_bound;
  const double floor = best_.found ? best_.value - others : -1;
  child.answers[loser] =
      cover_class(bounds(loser, problem_.proposals), without(forbidden), std::max(floor, -1.0), budget_);
  const ClassAnswer& answer = child.answers[loser];
  child.bound = others + std::min(answer.upper_bound, node.answers[loser].upper_bound);
  child.answers[loser].upper_bound = child.bound - others;
  if (!answer.found && budget_.stop() == CoverStop::none) return;
  if (best_.found && child.bound <= best_.value + kLeastGain) return;
  open_.push(std::move(child));
}

CoverAnswer CoverSearch::run() {
  const std::size_t classes = problem_.classes;
  Node root{0, 0, std::vector<Indices>(classes), std::vector<ClassAnswer>(classes)};
  CoverStop stop = CoverStop::none;
  bool possible = true;
  // An equal share of what is left for each; then what the others left over for those that were not finished.
  std::vector<std::size_t> unfinished;
  for (std::size_t c = 0; c < classes; ++c) {
    budget_.allot(1.0 / static_cast<double>(classes - c));
    root.answers[c] = cover_class(bounds(c, problem_.proposals), without({}), -1, budget_);
    if (budget_.stop() != CoverStop::none)
      unfinished.push_back(c);
    else
      possible = possible && root.answers[c].found;
  }
  for (std::size_t i = 0; i < unfinished.size() && possible; ++i) {
    ClassAnswer& answer = root.answers[unfinished[i]];
    budget_.allot(0.9 / static_cast<double>(unfinished.size() - i));
    if (budget_.late()) {
      stop = CoverStop::time;
      break;
    }
    const ClassAnswer again = cover_class(bounds(unfinished[i], problem_.proposals), without({}),
                                          answer.found ? answer.value : -1, budget_);
    stop = budget_.stop() != CoverStop::none ? budget_.stop() : stop;
    const double bound = std::min(answer.upper_bound, again.upper_bound);
    if (again.found) answer = again;
    answer.upper_bound = bound;
  }
  for (const ClassAnswer& answer : root.answers) root.bound += answer.upper_bound;
  budget_.allot(1);
  double left = -1;  // the greatest bound of what was given up
  if (possible && problem_.first_piece != nullptr) offer_singles();
  if (possible) open_.push(root);
  while (!open_.empty()) {
    const Node node = open_.top();
    open_.pop();
    if (best_.found && node.bound <= best_.value + kLeastGain) break;
    repair(node);
    std::uint32_t proposal = 0;
    std::size_t one = 0, other = 0;
    if (!first_conflict(node, proposal, one, other) || !budget_.spend()) {
      left = std::max(left, node.bound);
      if (budget_.stop() != CoverStop::none) break;  // all others have lower bounds
      continue;
    }
    branch(node, proposal, one);
    branch(node, proposal, other);
  }
  best_.nodes = budget_.spent();
  best_.upper_bound = std::max(left, best_.found ? best_.value : 0.0);
  if (budget_.stop() != CoverStop::none) stop = budget_.stop();
  if (possible && (!best_.found || best_.upper_bound > best_.value + 1e-9)) best_.stop = stop;
  return best_;
}

}  // namespace

CoverAnswer cover(const CoverProblem& problem, const CoverLimits& limits) {
  return CoverSearch(problem, limits).run();
}

}  // namespace samdistill
