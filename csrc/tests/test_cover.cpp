// The matcher against every choice; its bounds when it is stopped early; components.
#include <algorithm>
#include <cmath>
#include <functional>
#include <random>
#include <vector>

#include "check.h"
#include "cover.h"

namespace {

using samdistill::cover;
using samdistill::CoverAnswer;
using samdistill::CoverProblem;
using samdistill::CoverStop;

struct Case {
  std::size_t atoms, proposals, classes;
  std::vector<std::uint8_t> covered_by, touching;
  std::vector<double> inside, outside, total;
  std::vector<std::int64_t> lower, upper, limit, first_piece;

  CoverProblem problem() const {
    CoverProblem p;
    p.atoms = atoms, p.proposals = proposals, p.classes = classes;
    p.covered_by = covered_by.data();
    p.inside = inside.data(), p.outside = outside.data(), p.total = total.data();
    p.lower = lower.data(), p.upper = upper.data(), p.limit = limit.data();
    if (!first_piece.empty()) p.first_piece = first_piece.data(), p.touching = touching.data();
    return p;
  }

  double value(std::size_t c, const std::vector<std::size_t>& chosen) const {
    double in = 0, out = 0;
    for (std::size_t j = 0; j < atoms; ++j) {
      bool covered = false;
      for (const std::size_t k : chosen) covered = covered || covered_by[j * proposals + k] != 0;
      if (covered) in += inside[j * classes + c], out += outside[j * classes + c];
    }
    return in > 0 ? in / (total[c] + out) : 0;
  }

  // Here every proposal is one piece.
  std::int64_t components(const std::vector<std::size_t>& chosen) const {
    std::vector<std::size_t> left = chosen;
    std::int64_t count = 0;
    while (!left.empty()) {
      ++count;
      std::vector<std::size_t> front{left.back()};
      left.pop_back();
      while (!front.empty()) {
        const std::size_t k = front.back();
        front.pop_back();
        for (std::size_t i = left.size(); i-- > 0;) {
          if (touching[k * proposals + left[i]] == 0) continue;
          front.push_back(left[i]);
          left.erase(left.begin() + static_cast<std::ptrdiff_t>(i));
        }
      }
    }
    return count;
  }

  bool allowed(std::size_t c, const std::vector<std::size_t>& chosen) const {
    const auto size = static_cast<std::int64_t>(chosen.size());
    const std::int64_t count = first_piece.empty() ? size : components(chosen);
    return size <= limit[c] && count >= lower[c] && count <= upper[c];
  }
};

// The greatest value of all choices, -1 where there is none.
double best_of_all(const Case& test) {
  double best = -1;
  std::vector<std::vector<std::size_t>> chosen(test.classes);
  const std::function<void(std::size_t)> give = [&](std::size_t k) {
    if (k < test.proposals) {
      give(k + 1);
      for (auto& mine : chosen) {
        mine.push_back(k);
        give(k + 1);
        mine.pop_back();
      }
      return;
    }
    double value = 0;
    for (std::size_t c = 0; c < test.classes; ++c) {
      if (!test.allowed(c, chosen[c])) return;
      value += test.value(c, chosen[c]);
    }
    best = std::max(best, value);
  };
  give(0);
  return best;
}

Case random_case(std::mt19937& random, bool with_pieces) {
  Case test{};
  test.proposals = random() % 7, test.classes = 1 + random() % 3, test.atoms = random() % 12;
  if (test.proposals == 0) test.atoms = 0;
  test.covered_by.assign(test.atoms * test.proposals, 0);
  for (std::size_t j = 0; j < test.atoms; ++j) {
    for (std::size_t k = 0; k < test.proposals; ++k)
      test.covered_by[j * test.proposals + k] = random() % 3 == 0;
    test.covered_by[j * test.proposals + random() % test.proposals] = 1;
  }
  for (std::size_t i = 0; i < test.atoms * test.classes; ++i) {
    const bool lit = random() % 2 == 0;
    test.inside.push_back(static_cast<double>(random() % (lit ? 20 : 3)));
    test.outside.push_back(static_cast<double>(random() % (lit ? 3 : 20)));
  }
  for (std::size_t c = 0; c < test.classes; ++c) {
    double total = static_cast<double>(random() % 4 == 0 ? 0 : random() % 9);
    for (std::size_t j = 0; j < test.atoms; ++j) total += test.inside[j * test.classes + c];
    test.total.push_back(total);
    test.lower.push_back(random() % 3);
    test.upper.push_back(test.lower.back() + static_cast<std::int64_t>(random() % 3));
  }
  test.limit = test.upper;
  if (!with_pieces) return test;
  for (std::int64_t& most : test.limit) most = 3;
  for (std::size_t k = 0; k <= test.proposals; ++k) test.first_piece.push_back(static_cast<std::int64_t>(k));
  test.touching.assign(test.proposals * test.proposals, 0);
  for (std::size_t i = 0; i < test.proposals; ++i) {
    for (std::size_t k = 0; k <= i; ++k) {
      const bool touch = i == k || random() % 4 == 0;
      test.touching[i * test.proposals + k] = test.touching[k * test.proposals + i] = touch;
    }
  }
  return test;
}

// What is chosen is within the bounds, has the value it claims, and no proposal twice.
void check_choice(const Case& test, const CoverAnswer& answer) {
  std::vector<int> times(test.proposals, 0);
  double value = 0;
  CHECK(answer.chosen.size() == test.classes);
  for (std::size_t c = 0; c < test.classes; ++c) {
    const std::vector<std::size_t> chosen(answer.chosen[c].begin(), answer.chosen[c].end());
    CHECK(std::is_sorted(chosen.begin(), chosen.end()) && test.allowed(c, chosen));
    for (const std::size_t k : chosen) CHECK(++times[k] == 1);
    value += test.value(c, chosen);
  }
  CHECK(std::abs(value - answer.value) < 1e-9);
}

void every_case_is_solved_to_the_optimum(bool with_pieces) {
  std::mt19937 random(with_pieces ? 2 : 1);
  for (int trial = 0; trial < 1500; ++trial) {
    const Case test = random_case(random, with_pieces);
    const double best = best_of_all(test);
    const CoverAnswer answer = cover(test.problem(), {});
    CHECK(answer.found == (best >= 0) && answer.stop == CoverStop::none);
    if (!answer.found) continue;
    check_choice(test, answer);
    CHECK(std::abs(answer.value - best) < 1e-9 && std::abs(answer.upper_bound - best) < 1e-9);
  }
}

void a_search_that_is_stopped_keeps_its_promises() {
  std::mt19937 random(3);
  for (int trial = 0; trial < 1500; ++trial) {
    const Case test = random_case(random, trial % 2 == 0);
    const double best = best_of_all(test);
    const CoverAnswer answer = cover(test.problem(), {static_cast<std::int64_t>(random() % 4), -1});
    CHECK(answer.nodes < 4);
    if (answer.stop == CoverStop::none) {
      CHECK(answer.found == (best >= 0));
    } else {
      CHECK(answer.stop == CoverStop::nodes);
    }
    if (best >= 0) CHECK(answer.upper_bound >= best - 1e-9);
    if (answer.found) {
      check_choice(test, answer);
      CHECK(answer.value <= best + 1e-9);
    }
  }
}

void no_time_still_gives_an_answer() {
  std::mt19937 random(4);
  int stopped_before_a_node = 0;
  for (int trial = 0; trial < 1500; ++trial) {
    const bool with_pieces = trial % 2 == 0;
    const Case test = random_case(random, with_pieces);
    const double best = best_of_all(test);
    const CoverAnswer whole = cover(test.problem(), {}), answer = cover(test.problem(), {-1, 0.0});
    CHECK(answer.nodes == 0 && (answer.stop == CoverStop::none || answer.stop == CoverStop::time));
    if (answer.stop == CoverStop::none) CHECK(answer.found == (best >= 0));
    if (!with_pieces) CHECK(answer.found == (best >= 0));
    if (best >= 0) CHECK(answer.upper_bound >= best - 1e-9);
    if (answer.found) {
      check_choice(test, answer);
      CHECK(answer.value <= best + 1e-9);
      if (answer.stop == CoverStop::none) CHECK(answer.value >= best - 1e-9);
    }
    if (whole.nodes == 0 && answer.stop == CoverStop::time) ++stopped_before_a_node;
  }
  CHECK(stopped_before_a_node > 0);
}

}  // namespace

int main() {
  every_case_is_solved_to_the_optimum(false);
  every_case_is_solved_to_the_optimum(true);
  a_search_that_is_stopped_keeps_its_promises();
  no_time_still_gives_an_answer();
  return finish();
}
