#include "likeliest.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "dispatch.h"

namespace samdistill {
namespace {

constexpr float nothing = -std::numeric_limits<float>::infinity();

// splitmix64 (Steele, Lea, Flood, 2014) of the seed, to key the permutation.
std::uint32_t key_of(std::uint64_t seed) {
  std::uint64_t z = seed + 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return static_cast<std::uint32_t>((z ^ (z >> 31)) >> 32);
}

// MurmurHash3's 32-bit finaliser, a permutation of the 32-bit numbers, and its inverse.
inline SAMDISTILL_INLINE std::uint32_t scramble(std::uint32_t h) {
  h ^= h >> 16;
  h *= 0x85ebca6bu;
  h ^= h >> 13;
  h *= 0xc2b2ae35u;
  return h ^ (h >> 16);
}

std::uint32_t unscramble(std::uint32_t h) {
  h ^= h >> 16;
  h *= 0x7ed1b41du;
  h ^= (h >> 13) ^ (h >> 26);
  h *= 0xa5cb9243u;
  return h ^ (h >> 16);
}

// Runs are short: instead of a scalar rest the last block overlaps the one before it, which a maximum
// forgives.
SAMDISTILL_CLONES
float greatest(const float* values, std::int64_t n) {
  constexpr std::int64_t lanes = 16;
  float best = nothing;
  if (n < lanes) {
    for (std::int64_t i = 0; i < n; ++i) best = values[i] > best ? values[i] : best;
    return best;
  }
  float lane[lanes];
  const float* last = values + (n - lanes);
  for (std::int64_t l = 0; l < lanes; ++l) lane[l] = last[l];
  for (; values < last; values += lanes) {
    for (std::int64_t l = 0; l < lanes; ++l) lane[l] = values[l] > lane[l] ? values[l] : lane[l];
  }
  for (std::int64_t half = lanes / 2; half > 0; half /= 2) {
    for (std::int64_t l = 0; l < half; ++l) lane[l] = lane[l + half] > lane[l] ? lane[l + half] : lane[l];
  }
  return lane[0];
}

// The greatest rank among the values equal to `level`; 0 when there is none (or when it is 0).
SAMDISTILL_CLONES
std::uint32_t greatest_rank(const float* values, std::int64_t n, float level, std::uint32_t first,
                            std::uint32_t key) {
  std::uint32_t best = 0;
#pragma omp simd reduction(max : best)
  for (std::int64_t i = 0; i < n; ++i) {
    const std::uint32_t rank = scramble((first + static_cast<std::uint32_t>(i)) ^ key);
    const std::uint32_t counted = values[i] == level ? rank : 0u;
    best = counted > best ? counted : best;
  }
  return best;
}

// The largest whole number below spread squared, -1 for no spread: distances are compared in whole numbers.
std::int64_t squares_below(double spread) {
  return static_cast<std::int64_t>(std::ceil(std::min(spread * spread, 4e18))) - 1;
}

// The largest whole number whose square is at most n >= 0.
std::int64_t square_root(std::int64_t n) {
  auto root = static_cast<std::int64_t>(std::sqrt(static_cast<double>(n)));
  while (root * root > n) --root;
  while ((root + 1) * (root + 1) <= n) ++root;
  return root;
}

struct Span {
  std::int32_t begin, end;
};

class Election {
 public:
  Election(const float* map, std::size_t width, const std::vector<Run>& runs, double spread,
           std::uint64_t seed)
      : map_(map),
        width_(width),
        runs_(runs),
        too_near_(squares_below(spread)),
        key_(key_of(seed)),
        values_(runs.size()),
        ranks_(runs.size()),
        ranked_(runs.size(), 0) {
    for (std::size_t i = 0; i < runs.size(); ++i) {
      values_[i] = greatest(pixels(runs[i].row, runs[i].begin), runs[i].end - runs[i].begin);
    }
  }

  // Chooses the best pixel left; false when none is.
  bool choose() {
    const float lead = greatest(values_.data(), static_cast<std::int64_t>(values_.size()));
    if (lead == nothing) return false;
    std::uint32_t best = 0;
    for (std::size_t i = 0; i < values_.size(); ++i) {
      if (values_[i] != lead) continue;
      if (!ranked_[i]) rank(i);
      best = std::max(best, ranks_[i]);
    }
    const std::size_t index = unscramble(best) ^ key_;
    const Pixel pixel{static_cast<std::int32_t>(index % width_), static_cast<std::int32_t>(index / width_)};
    chosen_.push_back(pixel);
    depose(pixel);
    return true;
  }

  const std::vector<Pixel>& chosen() const { return chosen_; }

 private:
  const float* pixels(std::int32_t row, std::int32_t x) const {
    return map_ + static_cast<std::size_t>(row) * width_ + static_cast<std::size_t>(x);
  }

  // How many pixels on either side of pixel.x lie too near in row `row`; -1 when none does, not even that x.
  std::int64_t reach(const Pixel& pixel, std::int32_t row) const {
    const std::int64_t dy = std::int64_t{row} - pixel.y;
    const std::int64_t rest = too_near_ - dy * dy;
    return rest < 0 ? (dy == 0 ? 0 : -1) : square_root(rest);
  }

  // The runs near the pixel elect again.
  void depose(const Pixel& pixel) {
    const std::int64_t far = square_root(std::max<std::int64_t>(too_near_, 0));
    const std::int64_t last_row = std::min<std::int64_t>(runs_.back().row, pixel.y + far);
    for (std::int64_t row = std::max<std::int64_t>(runs_.front().row, pixel.y - far); row <= last_row;
         ++row) {
      const std::int64_t half = reach(pixel, static_cast<std::int32_t>(row));
      if (half < 0) continue;
      const auto before = [row, left = pixel.x - half](const Run& run, int) {
        return run.row < row || (run.row == row && run.end <= left);
      };
      for (auto run = std::lower_bound(runs_.begin(), runs_.end(), 0, before);
           run != runs_.end() && run->row == row && run->begin <= pixel.x + half; ++run) {
        elect(static_cast<std::size_t>(run - runs_.begin()));
      }
    }
  }

  void elect(std::size_t i) {
    values_[i] = nothing;
    ranked_[i] = 0;
    find_open(runs_[i]);
    for (const Span& span : open_) {
      values_[i] = std::max(values_[i], greatest(pixels(runs_[i].row, span.begin), span.end - span.begin));
    }
  }

  void rank(std::size_t i) {
    ranks_[i] = 0;
    ranked_[i] = 1;
    find_open(runs_[i]);
    for (const Span& span : open_) {
      const float* first = pixels(runs_[i].row, span.begin);
      const std::uint32_t found = greatest_rank(first, span.end - span.begin, values_[i],
                                                static_cast<std::uint32_t>(first - map_), key_);
      ranks_[i] = std::max(ranks_[i], found);
    }
  }

  // What the chosen pixels leave open of a run.
  void find_open(const Run& run) {
    taken_.clear();
    for (const Pixel& pixel : chosen_) {
      const std::int64_t half = reach(pixel, run.row);
      if (half < 0 || pixel.x + half < run.begin || pixel.x - half >= run.end) continue;
      taken_.push_back({static_cast<std::int32_t>(std::max<std::int64_t>(pixel.x - half, run.begin)),
                        static_cast<std::int32_t>(std::min<std::int64_t>(pixel.x + half + 1, run.end))});
    }
    std::sort(taken_.begin(), taken_.end(), [](const Span& a, const Span& b) { return a.begin < b.begin; });
    open_.clear();
    std::int32_t x = run.begin;
    for (const Span& span : taken_) {
      if (span.begin > x) open_.push_back({x, span.begin});
      x = std::max(x, span.end);
    }
    if (x < run.end) open_.push_back({x, run.end});
  }

  const float* map_;
  std::size_t width_;
  const std::vector<Run>& runs_;
  std::int64_t too_near_;  // a squared distance of at most that is too near
  std::uint32_t key_;
  std::vector<float> values_;         // of each run's champion
  std::vector<std::uint32_t> ranks_;  // of each run's champion, once it has tied for the lead
  std::vector<std::uint8_t> ranked_;
  std::vector<Pixel> chosen_;
  std::vector<Span> taken_, open_;  // scratch
};

}  // namespace

std::vector<Pixel> likeliest_pixels(const float* map, std::size_t width, const std::vector<Run>& runs,
                                    std::int32_t count, double spread, std::uint64_t seed) {
  Election election(map, width, runs, spread, seed);
  for (std::int32_t i = 0; i < count && election.choose(); ++i) {
  }
  return election.chosen();
}

}  // namespace samdistill
