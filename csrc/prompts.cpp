#include "prompts.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "components.h"
#include "dispatch.h"
#include "likeliest.h"

namespace samdistill {
namespace {

// The runs of one object, in raster order, and its outer box.
struct Object {
  std::vector<Run> runs;
  std::int32_t x0, y0, x1, y1;
};

// The objects of a mask: its 8-connected components in raster order of their first pixels, or all of it as
// one.
std::vector<Object> objects_of(const BitImage& mask, bool per_component) {
  const Components found = label_bits(mask, true);
  std::vector<Object> objects;
  for (const Region& region : found.regions) {
    if (per_component || objects.empty()) {
      objects.push_back({{}, region.x0, region.y0, region.x1, region.y1});
      continue;
    }
    Object& whole = objects.front();
    whole.x0 = std::min(whole.x0, region.x0);
    whole.x1 = std::max(whole.x1, region.x1);
    whole.y1 = std::max(whole.y1, region.y1);
  }
  if (!per_component && !objects.empty()) objects.front().runs.reserve(found.labels.size());
  for (std::size_t y = 0; y < mask.height; ++y) {
    const std::size_t base = y * mask.width;
    const auto first = static_cast<std::size_t>(found.row_first[y]),
               last = static_cast<std::size_t>(found.row_first[y + 1]);
    for (std::size_t i = first; i < last; ++i) {
      const std::size_t begin = static_cast<std::size_t>(found.edges[2 * i]) - base;
      const std::size_t end = static_cast<std::size_t>(found.edges[2 * i + 1]) - base;
      Object& object = objects[per_component ? static_cast<std::size_t>(found.labels[i]) - 1 : 0];
      object.runs.push_back(
          {static_cast<std::int32_t>(y), static_cast<std::int32_t>(begin), static_cast<std::int32_t>(end)});
    }
  }
  return objects;
}

bool is_set(const BitImage& mask, const Pixel& pixel) {
  const std::uint64_t word = mask.row(static_cast<std::size_t>(pixel.y))[pixel.x / 64];
  return (word >> (static_cast<unsigned>(pixel.x) % 64)) & 1u;
}

// The pixels that more than one class has.
BitImage shared_pixels(const std::vector<BitImage>& masks) {
  BitImage once(masks[0].height, masks[0].width), shared(masks[0].height, masks[0].width);
  std::fill(once.bits.begin(), once.bits.end(), 0);
  std::fill(shared.bits.begin(), shared.bits.end(), 0);
  for (const BitImage& mask : masks) {
    for (std::size_t i = 0; i < mask.bits.size(); ++i) {
      shared.bits[i] |= once.bits[i] & mask.bits[i];
      once.bits[i] |= mask.bits[i];
    }
  }
  return shared;
}

// Calls use(word, x of its first bit) for the bits of a run that no other class has; word is not 0.
template <typename Use>
void for_exclusive(const Run& run, const BitImage& shared, Use use) {
  const std::uint64_t* others = shared.row(static_cast<std::size_t>(run.row));
  for (std::int32_t x = run.begin / 64 * 64; x < run.end; x += 64) {
    std::uint64_t word = ~others[x / 64];
    if (x < run.begin) word &= ~std::uint64_t(0) << (run.begin - x);
    if (x + 64 > run.end) word &= ~std::uint64_t(0) >> (x + 64 - run.end);
    if (word != 0) use(word, x);
  }
}

// The sum of the positions of the set bits.
std::int64_t position_sum(std::uint64_t word) {
  constexpr std::uint64_t bit_set[6] = {0xaaaaaaaaaaaaaaaau, 0xccccccccccccccccu, 0xf0f0f0f0f0f0f0f0u,
                                        0xff00ff00ff00ff00u, 0xffff0000ffff0000u, 0xffffffff00000000u};
  if (word == ~std::uint64_t(0)) return 63 * 64 / 2;
  std::int64_t sum = 0;
  for (int k = 0; k < 6; ++k) sum += std::int64_t(SAMDISTILL_POPCOUNT64(word & bit_set[k])) << k;
  return sum;
}

struct Centre {
  double x, y;
};

// The centre of mass of the runs' exclusive pixels; false when there are none.
bool centre_of(const std::vector<Run>& runs, const BitImage& shared, Centre& centre) {
  std::int64_t n = 0, sum_x = 0, sum_y = 0;
  for (const Run& run : runs) {
    for_exclusive(run, shared, [&](std::uint64_t word, std::int32_t x) {
      const std::int64_t pixels = SAMDISTILL_POPCOUNT64(word);
      n += pixels;
      sum_x += pixels * x + position_sum(word);
      sum_y += pixels * run.row;
    });
  }
  if (n == 0) return false;
  centre = {static_cast<double>(sum_x) / static_cast<double>(n),
            static_cast<double>(sum_y) / static_cast<double>(n)};
  return true;
}

// The exclusive pixel nearest to the centre, the first in raster order if several are.
Pixel nearest_exclusive(const std::vector<Run>& runs, const BitImage& shared, const Centre& centre) {
  Pixel nearest{};
  double least = std::numeric_limits<double>::infinity();
  for (const Run& run : runs) {
    const double dy = run.row - centre.y;
    const double beside = std::max({run.begin - centre.x, centre.x - (run.end - 1), 0.0});
    if (dy * dy + beside * beside > least) continue;
    for_exclusive(run, shared, [&](std::uint64_t word, std::int32_t x) {
      for (; word != 0; word &= word - 1) {
        const std::int32_t pixel_x = x + SAMDISTILL_LOWEST_BIT64(word);
        const double dx = pixel_x - centre.x;
        if (dx * dx + dy * dy < least) {
          least = dx * dx + dy * dy;
          nearest = {pixel_x, run.row};
        }
      }
    });
  }
  return nearest;
}

struct Point {
  float x, y;
};

struct Set {
  std::int32_t class_index, component;
  std::vector<Point> positives;
};

// The positive points of one set; none when centres are wanted and no pixel is exclusive.
std::vector<Point> positives_of(const float* map, std::size_t width, const std::vector<Run>& runs,
                                const BitImage& shared, const PromptRules& rules) {
  std::vector<Point> points;
  const auto push = [&points](double x, double y) {
    points.push_back({static_cast<float>(x), static_cast<float>(y)});
  };
  if (rules.points == PointRule::likeliest) {
    for (const Pixel& pixel : likeliest_pixels(map, width, runs, rules.count, rules.spread_px, rules.seed)) {
      push(pixel.x, pixel.y);
    }
  } else if (Centre centre{}; rules.points == PointRule::centre && centre_of(runs, shared, centre)) {
    if (rules.snap) {
      const Pixel pixel = nearest_exclusive(runs, shared, centre);
      push(pixel.x, pixel.y);
    } else {
      push(centre.x, centre.y);
    }
  }
  return points;
}

// Background points: the positives of all sets of the other classes. A likeliest point of another class may
// lie in this class's mask too; that one would deny this class and is left out.
void append_negatives(const std::vector<Set>& sets, std::int32_t class_index, const BitImage& mask,
                      const PromptRules& rules, PromptSets& out) {
  for (const Set& other : sets) {
    if (other.class_index == class_index) continue;
    for (const Point& point : other.positives) {
      const Pixel pixel{static_cast<std::int32_t>(point.x), static_cast<std::int32_t>(point.y)};
      if (rules.points == PointRule::likeliest && is_set(mask, pixel)) continue;
      out.points.insert(out.points.end(), {point.x, point.y});
      out.point_labels.push_back(0);
    }
  }
}

}  // namespace

PromptSets extract_prompts(const float* maps, const std::vector<BitImage>& masks, const PromptRules& rules) {
  PromptSets out;
  if (masks.empty()) return out;
  const std::size_t pixels = masks[0].height * masks[0].width;
  const BitImage shared = rules.points == PointRule::centre ? shared_pixels(masks) : BitImage(0, 0);
  std::vector<Set> sets;
  for (std::size_t c = 0; c < masks.size(); ++c) {
    const std::vector<Object> objects = objects_of(masks[c], rules.per_component);
    for (std::size_t i = 0; i < objects.size(); ++i) {
      const Object& object = objects[i];
      std::vector<Point> positives =
          positives_of(maps + c * pixels, masks[c].width, object.runs, shared, rules);
      if (positives.empty() && rules.points != PointRule::none) continue;
      const auto number = static_cast<std::int32_t>(rules.per_component ? i + 1 : 0);
      sets.push_back({static_cast<std::int32_t>(c), number, std::move(positives)});
      for (const std::int32_t edge : {object.x0, object.y0, object.x1, object.y1}) {
        out.boxes.push_back(static_cast<float>(edge));
      }
    }
  }
  for (const Set& set : sets) {
    out.class_index.push_back(set.class_index);
    out.component.push_back(set.component);
    for (const Point& point : set.positives) out.points.insert(out.points.end(), {point.x, point.y});
    out.point_labels.insert(out.point_labels.end(), set.positives.size(), 1);
    if (rules.negatives)
      append_negatives(sets, set.class_index, masks[static_cast<std::size_t>(set.class_index)], rules, out);
    out.offsets.push_back(static_cast<std::int64_t>(out.point_labels.size()));
  }
  return out;
}

PromptSets clean_and_extract(const float* maps, std::size_t classes, std::size_t height, std::size_t width,
                             const float* thresholds, const Cleaning& how, const PromptRules& rules,
                             std::uint8_t* mask_bytes) {
  const std::size_t pixels = height * width;
  std::vector<BitImage> masks;
  masks.reserve(classes);
  for (std::size_t c = 0; c < classes; ++c) {
    masks.emplace_back(height, width);
    try {
      clean_bits(maps + c * pixels, thresholds[c], how, masks[c]);
    } catch (const NotANumber& error) {
      throw NotANumber(c * pixels + error.index);
    }
    if (mask_bytes == nullptr) continue;
    for (std::size_t y = 0; y < height; ++y) {
      row_kernels().bytes_of_bits(masks[c].row(y), width, mask_bytes + c * pixels + y * width);
    }
  }
  return extract_prompts(maps, masks, rules);
}

}  // namespace samdistill
