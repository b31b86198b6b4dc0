#include "cover_local.h"

#include <algorithm>
#include <utility>

namespace samdistill {
namespace {

constexpr double kLeastGain = 1e-12;
constexpr std::uint32_t kNobody = 0xffffffff;

// The candidate outside `chosen` whose addition gives the greatest value above `value`; the first of equals.
std::uint32_t best_addition(const View& view, const Coverage& coverage, const std::vector<char>& in,
                            double& value) {
  std::uint32_t best = kNobody;
  for (std::uint32_t k = 0; k < view.candidates(); ++k) {
    if (in[k] != 0) continue;
    const double with = coverage.value_with(k);
    if (with > value) value = with, best = k;
  }
  return best;
}

// Where components are counted, what is added greedily need not come within the bounds: the best single
// candidate that is within them, bettered.
Choice improve_best_single(const View& view, const ClassBounds& bounds) {
  Choice best;
  std::vector<std::uint32_t> single(1);
  const Coverage nothing(view);
  for (std::uint32_t k = 0; k < view.candidates(); ++k) {
    const double value = nothing.value_with(k);
    single[0] = k;
    if (value > best.value && bounds.allow(view, single))
      best.allowed = true, best.chosen = single, best.value = value;
  }
  return best.allowed ? improve(view, bounds, std::move(best.chosen)) : best;
}

}  // namespace

Choice improve(const View& view, const ClassBounds& bounds, std::vector<std::uint32_t> chosen) {
  Choice best;
  best.allowed = bounds.allow(view, chosen);
  Coverage coverage(view);
  std::vector<char> in(view.candidates(), 0);
  for (const std::uint32_t k : chosen) coverage.add(k), in[k] = 1;
  best.chosen = std::move(chosen);
  best.value = coverage.value();
  // Every move is a candidate that goes (or none) and one that comes (or none).
  while (best.allowed && !bounds.budget->late()) {
    double value = best.value + kLeastGain;
    std::uint32_t goes = kNobody, comes = kNobody;
    const auto holds = [&](std::uint32_t without, std::uint32_t with) {
      if (!bounds.counts_pieces()) return true;
      std::vector<std::uint32_t> trial;
      for (const std::uint32_t k : best.chosen) {
        if (k != without) trial.push_back(k);
      }
      if (with != kNobody) trial.push_back(with);
      return bounds.allow(view, trial);
    };
    if (best.chosen.size() < bounds.most) {
      double reached = value;
      const std::uint32_t k = best_addition(view, coverage, in, reached);
      if (k != kNobody && holds(kNobody, k)) value = reached, comes = k;
    }
    for (const std::uint32_t out : best.chosen) {
      if (bounds.budget->late()) break;
      coverage.remove(out);
      if (best.chosen.size() > bounds.least() && coverage.value() > value && holds(out, kNobody)) {
        value = coverage.value(), goes = out, comes = kNobody;
      }
      double reached = value;
      const std::uint32_t k = best_addition(view, coverage, in, reached);
      if (k != kNobody && holds(out, k)) value = reached, goes = out, comes = k;
      coverage.add(out);
    }
    if (goes == kNobody && comes == kNobody) break;
    if (goes != kNobody) {
      coverage.remove(goes);
      in[goes] = 0;
      best.chosen.erase(std::find(best.chosen.begin(), best.chosen.end(), goes));
    }
    if (comes != kNobody) {
      coverage.add(comes);
      in[comes] = 1;
      best.chosen.push_back(comes);
    }
    best.value = value;
  }
  Coverage exact(view);  // without the rounding of what came and went
  for (const std::uint32_t k : best.chosen) exact.add(k);
  best.value = exact.value();
  return best;
}

Choice choose_greedily(const View& view, const ClassBounds& bounds) {
  Coverage coverage(view);
  std::vector<std::uint32_t> chosen;
  std::vector<char> in(view.candidates(), 0);
  Choice best = improve(view, bounds, {});
  while (chosen.size() < bounds.most && !(best.allowed && bounds.budget->late())) {
    double value = chosen.size() < bounds.least() || !bounds.allow(view, chosen) ? -1.0 : coverage.value();
    const std::uint32_t k = best_addition(view, coverage, in, value);
    if (k == kNobody) break;
    coverage.add(k);
    in[k] = 1;
    chosen.push_back(k);
    if (!bounds.allow(view, chosen)) continue;
    if (!best.allowed || value > best.value) best.allowed = true, best.chosen = chosen, best.value = value;
  }
  if (best.allowed) best = improve(view, bounds, std::move(best.chosen));
  if (!bounds.counts_pieces()) return best;
  Choice other = improve_best_single(view, bounds);
  return other.allowed && (!best.allowed || other.value > best.value) ? other : best;
}

}  // namespace samdistill
