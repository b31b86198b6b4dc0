// Any problem of the matcher: with and without limits the choice is within the bounds, no proposal is given
// twice, and what one search finds is never above what another has proven; forbidding nothing changes
// nothing.
#include <algorithm>
#include <vector>

#include "bytes.h"
#include "cover.h"

namespace {

using samdistill::CoverAnswer;
using samdistill::CoverProblem;
using samdistill::CoverStop;

void check(const CoverProblem& problem, const CoverAnswer& answer) {
  PROMISE(answer.upper_bound >= answer.value - 1e-9);
  if (!answer.found) return;
  PROMISE(answer.chosen.size() == problem.classes);
  std::vector<bool> taken(problem.proposals, false);
  double sum = 0;
  for (std::size_t c = 0; c < problem.classes; ++c) {
    const auto& chosen = answer.chosen[c];
    const auto count = static_cast<std::int64_t>(chosen.size());
    PROMISE(count <= problem.limit[c]);
    PROMISE(problem.first_piece != nullptr || count >= problem.lower[c]);
    std::vector<bool> mine(problem.proposals, false);
    for (const std::int64_t k : chosen) {
      const auto place = static_cast<std::size_t>(k);
      PROMISE(place < problem.proposals && !taken[place]);
      taken[place] = mine[place] = true;
    }
    double in = 0, out = 0;
    for (std::size_t j = 0; j < problem.atoms; ++j) {
      bool covered = false;
      for (std::size_t k = 0; k < problem.proposals; ++k) {
        covered = covered || (mine[k] && problem.covered_by[j * problem.proposals + k] != 0);
      }
      if (covered)
        in += problem.inside[j * problem.classes + c], out += problem.outside[j * problem.classes + c];
    }
    sum += in > 0 ? in / (problem.total[c] + out) : 0;
  }
  PROMISE(sum <= answer.value + 1e-9 && sum >= answer.value - 1e-9);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Bytes bytes(data, size);
  CoverProblem problem;
  problem.proposals = bytes.between(0, 10);
  problem.classes = bytes.between(1, 3);
  problem.atoms = problem.proposals == 0 ? 0 : bytes.between(0, 24);
  const bool with_pieces = bytes.flag();
  const auto nodes = static_cast<std::int64_t>(bytes.next());
  std::vector<std::uint8_t> covered_by(problem.atoms * problem.proposals);
  std::vector<double> inside, outside, total(problem.classes);
  std::vector<std::int64_t> lower, upper, limit, first_piece(1, 0);
  for (std::size_t c = 0; c < problem.classes; ++c) {
    lower.push_back(static_cast<std::int64_t>(bytes.between(0, 2)));
    upper.push_back(lower.back() + static_cast<std::int64_t>(bytes.between(0, 3)));
    limit.push_back(with_pieces ? static_cast<std::int64_t>(bytes.between(0, 4)) : upper.back());
    total[c] = static_cast<double>(bytes.between(0, 9));
  }
  for (std::size_t j = 0; j < problem.atoms; ++j) {
    const std::size_t cover = bytes.next() + 256u * bytes.next(), sure = bytes.next() % problem.proposals;
    for (std::size_t k = 0; k < problem.proposals; ++k) {
      covered_by[j * problem.proposals + k] = (cover >> k & 1) != 0 || k == sure;
    }
    for (std::size_t c = 0; c < problem.classes; ++c) {
      inside.push_back(bytes.next());
      outside.push_back(bytes.next());
      total[c] += inside.back();
    }
  }
  for (std::size_t k = 0; k < problem.proposals; ++k) {
    first_piece.push_back(first_piece.back() + static_cast<std::int64_t>(bytes.between(1, 2)));
  }
  const auto pieces = static_cast<std::size_t>(first_piece.back());
  std::vector<std::uint8_t> touching(pieces * pieces);
  for (std::size_t i = 0; i < pieces && with_pieces; ++i) {
    for (std::size_t k = 0; k <= i; ++k) {
      touching[i * pieces + k] = touching[k * pieces + i] = i == k || bytes.flag();
    }
  }
  problem.covered_by = covered_by.data();
  problem.inside = inside.data(), problem.outside = outside.data(), problem.total = total.data();
  problem.lower = lower.data(), problem.upper = upper.data(), problem.limit = limit.data();
  if (with_pieces) problem.first_piece = first_piece.data(), problem.touching = touching.data();

  const CoverAnswer best = cover(problem, {20'000, -1}), early = cover(problem, {nodes % 8, -1});
  check(problem, best);
  check(problem, early);
  PROMISE(early.nodes <= nodes % 8);
  if (early.found && best.stop == CoverStop::none) PROMISE(best.found);
  if (best.found) PROMISE(early.upper_bound >= best.value - 1e-9);
  if (early.found) PROMISE(best.upper_bound >= early.value - 1e-9);
  if (early.stop == CoverStop::none && best.stop == CoverStop::none) PROMISE(early.found == best.found);
  return 0;
}
