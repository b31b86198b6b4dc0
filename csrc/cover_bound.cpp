#include "cover_bound.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <numeric>

namespace samdistill {

Relaxation::Relaxation(const View& view, std::size_t least, std::size_t most)
    : view_(view), least_(least), most_(most), given_(view.atoms(), 1.0), claim_(view.atom.size()) {
  for (std::size_t j = 0; j < view.atoms(); ++j) {
    const std::size_t from = view.first_of_atom[j], to = view.first_of_atom[j + 1];
    for (std::size_t i = from; i < to; ++i) {
      claim_[view.entry_of_atom[i]] = 1.0 / static_cast<double>(to - from);
    }
  }
}

// Any claims will do: raised to the r-th greatest, they are divided by the sum of the r greatest.
void Relaxation::share(std::size_t j, std::size_t r, double* shares) const {
  const std::size_t from = view_.first_of_atom[j], to = view_.first_of_atom[j + 1];
  if (to - from <= r) {
    for (std::size_t i = from; i < to; ++i) shares[view_.entry_of_atom[i]] = claim_[view_.entry_of_atom[i]];
    return;
  }
  sorted_.clear();
  for (std::size_t i = from; i < to; ++i) sorted_.push_back(claim_[view_.entry_of_atom[i]]);
  const auto middle = sorted_.begin() + static_cast<std::ptrdiff_t>(r);
  std::nth_element(sorted_.begin(), middle - 1, sorted_.end(), std::greater<>());
  const double floor = *(middle - 1);
  const double sum = std::accumulate(sorted_.begin(), middle, 0.0);
  if (!(sum > 0)) {
    for (std::size_t i = from; i < to; ++i) shares[view_.entry_of_atom[i]] = 1.0 / static_cast<double>(r);
    return;
  }
  for (std::size_t i = from; i < to; ++i) {
    const std::size_t e = view_.entry_of_atom[i];
    shares[e] = std::max(claim_[e], floor) / sum;
  }
}

double Relaxation::sharpen(double level, double goal, int rounds, std::vector<char>& dead,
                           const std::function<bool(const std::vector<std::uint32_t>&)>& look) {
  const std::size_t n = view_.candidates(), m = view_.atoms();
  std::vector<double> w(m), shares(view_.atom.size()), score(n), best_given = given_, best_claim = claim_;
  std::vector<std::uint32_t> order(n), times(m), top;
  std::vector<char> chosen(n);
  for (std::size_t j = 0; j < m; ++j) w[j] = view_.inside[j] - level * view_.outside[j];
  double least_bound = std::numeric_limits<double>::infinity(), pace = 1.0;
  int stalled = 0;
  for (int round = 0; round < rounds; ++round) {
    double rest = 0;
    std::fill(score.begin(), score.end(), 0.0);
    for (std::size_t j = 0; j < m; ++j) {
      if (w[j] >= 0) {
        rest += w[j] * (1 - given_[j]);
      } else {
        share(j, most_, shares.data());
      }
    }
    for (std::size_t e = 0; e < shares.size(); ++e) {
      const std::size_t j = view_.atom[e];
      score[view_.candidate[e]] += w[j] * (w[j] >= 0 ? given_[j] : shares[e]);
    }
    order.clear();
    for (std::uint32_t k = 0; k < n; ++k) {
      if (dead[k] == 0) order.push_back(k);
    }
    if (order.size() < least_) return goal;
    const std::size_t count = std::min(most_, order.size());
    std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(count), order.end(),
                      [&score](std::uint32_t x, std::uint32_t y) {
                        return score[x] > score[y] || (score[x] == score[y] && x < y);
                      });
    top.clear();
    double bound = rest;
    for (std::size_t i = 0; i < count && (i < least_ || score[order[i]] > 0); ++i) {
      bound += score[order[i]];
      top.push_back(order[i]);
    }
    if (bound < least_bound) {
      stalled = bound < least_bound - 0.001 * (least_bound - goal) ? 0 : stalled + 1;
      least_bound = bound;
      best_given = given_;
      best_claim = claim_;
    } else if (++stalled > 4) {
      pace *= 0.6;
      stalled = 0;
    }
    if (bound <= goal) break;
    if (look(top)) break;
    // A candidate outside the best ones takes the place of the worst of them, if that has to go or gladly
    // goes.
    const double worst = top.empty() ? 0.0 : score[top.back()];
    const double freed = top.size() == most_ ? worst : std::min(worst, 0.0);
    for (std::size_t i = top.size(); i < order.size(); ++i) {
      if (bound - freed + score[order[i]] <= goal) dead[order[i]] = 1;
    }

    std::fill(times.begin(), times.end(), 0);
    std::fill(chosen.begin(), chosen.end(), 0);
    for (const std::uint32_t k : top) {
      chosen[k] = 1;
      for (std::size_t e = view_.first[k]; e < view_.first[k + 1]; ++e) ++times[view_.atom[e]];
    }
    double steepness = 0;
    for (std::size_t j = 0; j < m; ++j) {
      if (w[j] < 0 || times[j] == 1 || (times[j] == 0 && given_[j] >= 1) || (times[j] > 1 && given_[j] <= 0))
        continue;
      const double slope = 1.0 - times[j];
      steepness += w[j] * slope * slope;
    }
    const double step = steepness > 0 ? pace * (bound - goal) / steepness : 0;
    const double drift = 1.0 / (round + 3.0);
    for (std::size_t j = 0; j < m; ++j) {
      if (w[j] >= 0) {
        given_[j] = std::clamp(given_[j] + step * (1.0 - times[j]), 0.0, 1.0);
      } else if (times[j] > 0) {
        for (std::size_t i = view_.first_of_atom[j]; i < view_.first_of_atom[j + 1]; ++i) {
          const std::size_t e = view_.entry_of_atom[i];
          claim_[e] += drift * ((chosen[view_.candidate[e]] != 0 ? 1.0 / times[j] : 0.0) - claim_[e]);
        }
      }
    }
  }
  given_ = best_given;
  claim_ = best_claim;
  return least_bound;
}

void Relaxation::weigh(double level) {
  const std::size_t entries = view_.atom.size(), levels = std::min(most_, kShareLevels);
  if (factors_.empty()) {
    factors_.resize(levels + 1);
    scores_.assign(levels + 1, std::vector<double>(entries));
    for (std::size_t r = 2; r <= levels; ++r) {
      factors_[r].resize(entries);
      for (std::size_t j = 0; j < view_.atoms(); ++j) share(j, r < levels ? r : most_, factors_[r].data());
    }
  }
  weight_.resize(view_.atoms());
  rest_.resize(view_.atoms());
  for (std::size_t j = 0; j < view_.atoms(); ++j) {
    weight_[j] = view_.inside[j] - level * view_.outside[j];
    rest_[j] = weight_[j] >= 0 ? weight_[j] * (1 - given_[j]) : 0.0;
  }
  for (std::size_t e = 0; e < entries; ++e) {
    const std::size_t j = view_.atom[e];
    for (std::size_t r = 2; r <= levels; ++r) {
      scores_[r][e] = weight_[j] * (weight_[j] >= 0 ? given_[j] : factors_[r][e]);
    }
  }
}

}  // namespace samdistill
