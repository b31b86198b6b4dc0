// Prompts against a look at every pixel.
#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "likeliest.h"
#include "prompts.h"

namespace {

using namespace samdistill;

// Cuts a mask into runs; where `chop` is true, into shorter ones than there are.
std::vector<Run> runs_of(const std::vector<bool>& mask, std::int32_t height, std::int32_t width, bool chop) {
  std::vector<Run> runs;
  for (std::int32_t y = 0; y < height; ++y) {
    for (std::int32_t x = 0; x < width; ++x) {
      if (!mask[static_cast<std::size_t>(y * width + x)]) continue;
      if (!chop && !runs.empty() && runs.back().row == y && runs.back().end == x) {
        ++runs.back().end;
      } else {
        runs.push_back({y, x, x + 1});
      }
    }
  }
  return runs;
}

void likeliest_pixels_are_the_greedy_choice_however_the_runs_are_cut() {
  std::mt19937 random(4);
  for (int trial = 0; trial < 400; ++trial) {
    const auto height = static_cast<std::int32_t>(1 + random() % 12),
               width = static_cast<std::int32_t>(1 + random() % 50);
    const auto pixels = static_cast<std::size_t>(height * width);
    std::vector<float> map(pixels);
    std::vector<bool> mask(pixels);
    for (std::size_t i = 0; i < pixels; ++i) {
      map[i] = static_cast<float>(random() % 9) / 8;
      mask[i] = random() % 3 > 0;
    }
    const double spreads[] = {0, 1, 1.5, 4, 1e200};
    const double spread = spreads[random() % 5];
    const auto count = static_cast<std::int32_t>(1 + random() % 12);
    const std::uint64_t seed = random();
    const auto width_ = static_cast<std::size_t>(width);
    const auto points =
        likeliest_pixels(map.data(), width_, runs_of(mask, height, width, false), count, spread, seed);
    const auto again =
        likeliest_pixels(map.data(), width_, runs_of(mask, height, width, true), count, spread, seed);
    CHECK(points.size() == again.size());

    std::vector<bool> open = mask;
    for (std::size_t i = 0; i < points.size(); ++i) {
      CHECK(points[i].x == again[i].x && points[i].y == again[i].y);
      const auto index = static_cast<std::size_t>(points[i].y * width + points[i].x);
      CHECK(open[index]);
      for (std::int32_t y = 0; y < height; ++y) {
        for (std::int32_t x = 0; x < width; ++x) {
          const auto other = static_cast<std::size_t>(y * width + x);
          CHECK(!open[other] || map[other] <= map[index]);
          const double dx = x - points[i].x, dy = y - points[i].y;
          if (other == index || dx * dx + dy * dy < spread * spread) open[other] = false;
        }
      }
    }
    const bool exhausted = std::none_of(open.begin(), open.end(), [](bool is_open) { return is_open; });
    CHECK(points.size() == static_cast<std::size_t>(count) || exhausted);
  }
}

struct Scene {
  std::size_t classes, height, width;
  std::vector<float> maps;
  bool in(std::size_t c, std::size_t y, std::size_t x) const {
    return maps[(c * height + y) * width + x] > 0.5f;
  }
  bool alone(std::size_t c, std::size_t y, std::size_t x) const {
    for (std::size_t other = 0; other < classes; ++other) {
      if (in(other, y, x) != (other == c)) return false;
    }
    return true;
  }
};

Scene random_scene(std::mt19937& random) {
  Scene scene{1 + random() % 3, 1 + random() % 20, 1 + random() % 140, {}};
  const unsigned sparse = 1 + random() % 6;
  for (std::size_t i = 0; i < scene.classes * scene.height * scene.width; ++i) {
    scene.maps.push_back(random() % sparse == 0 ? static_cast<float>(random() % 5) / 4 : 0.f);
  }
  return scene;
}

PromptSets extract(const Scene& scene, const PromptRules& rules, std::vector<std::uint8_t>& masks) {
  const std::vector<float> thresholds(scene.classes, 0.5f);
  masks.resize(scene.maps.size());
  Cleaning cleaning;
  cleaning.keep = Keep::all;
  return clean_and_extract(scene.maps.data(), scene.classes, scene.height, scene.width, thresholds.data(),
                           cleaning, rules, masks.data());
}

void boxes_and_centres_are_what_the_pixels_say() {
  std::mt19937 random(5);
  for (int trial = 0; trial < 300; ++trial) {
    const Scene scene = random_scene(random);
    PromptRules rules;
    rules.points = PointRule::centre;
    rules.snap = trial % 2 == 0;
    std::vector<std::uint8_t> masks;
    const PromptSets sets = extract(scene, rules, masks);
    std::size_t set = 0;
    for (std::size_t c = 0; c < scene.classes; ++c) {
      float box[4] = {1e9f, 1e9f, 0, 0};
      double n = 0, sum_x = 0, sum_y = 0;
      for (std::size_t y = 0; y < scene.height; ++y) {
        for (std::size_t x = 0; x < scene.width; ++x) {
          CHECK((masks[(c * scene.height + y) * scene.width + x] == 1) == scene.in(c, y, x));
          if (!scene.in(c, y, x)) continue;
          box[0] = std::min(box[0], static_cast<float>(x)), box[1] = std::min(box[1], static_cast<float>(y));
          box[2] = std::max(box[2], static_cast<float>(x + 1)),
          box[3] = std::max(box[3], static_cast<float>(y + 1));
          if (!scene.alone(c, y, x)) continue;
          n += 1, sum_x += static_cast<double>(x), sum_y += static_cast<double>(y);
        }
      }
      if (n == 0) continue;
      CHECK(set < sets.class_index.size() && sets.class_index[set] == static_cast<std::int32_t>(c));
      if (set >= sets.class_index.size()) return;
      CHECK(std::equal(box, box + 4, sets.boxes.data() + 4 * set));
      double x = sum_x / n, y = sum_y / n;
      if (rules.snap) {
        double least = std::numeric_limits<double>::infinity(), near_x = 0, near_y = 0;
        for (std::size_t py = 0; py < scene.height; ++py) {
          for (std::size_t px = 0; px < scene.width; ++px) {
            const double dx = static_cast<double>(px) - x, dy = static_cast<double>(py) - y;
            if (!scene.alone(c, py, px) || dx * dx + dy * dy >= least) continue;
            least = dx * dx + dy * dy, near_x = static_cast<double>(px), near_y = static_cast<double>(py);
          }
        }
        x = near_x, y = near_y;
      }
      const auto first = static_cast<std::size_t>(sets.offsets[set]);
      CHECK(sets.offsets[set + 1] == sets.offsets[set] + 1);
      CHECK(sets.points[2 * first] == static_cast<float>(x) &&
            sets.points[2 * first + 1] == static_cast<float>(y));
      ++set;
    }
    CHECK(set == sets.class_index.size());
  }
}

void negatives_are_the_other_classes_positives() {
  std::mt19937 random(6);
  for (int trial = 0; trial < 300; ++trial) {
    const Scene scene = random_scene(random);
    PromptRules rules;
    rules.per_component = trial % 2 == 0;
    rules.count = 2;
    rules.negatives = true;
    std::vector<std::uint8_t> masks;
    const PromptSets sets = extract(scene, rules, masks);
    for (std::size_t set = 0; set < sets.class_index.size(); ++set) {
      const auto c = static_cast<std::size_t>(sets.class_index[set]);
      std::vector<float> expected, found;
      for (std::size_t other = 0; other < sets.class_index.size(); ++other) {
        if (sets.class_index[other] == sets.class_index[set]) continue;
        for (auto i = static_cast<std::size_t>(sets.offsets[other]);
             i < static_cast<std::size_t>(sets.offsets[other + 1]); ++i) {
          const float x = sets.points[2 * i], y = sets.points[2 * i + 1];
          if (sets.point_labels[i] != 1 ||
              scene.in(c, static_cast<std::size_t>(y), static_cast<std::size_t>(x)))
            continue;
          expected.insert(expected.end(), {x, y});
        }
      }
      for (auto i = static_cast<std::size_t>(sets.offsets[set]);
           i < static_cast<std::size_t>(sets.offsets[set + 1]); ++i) {
        const float x = sets.points[2 * i], y = sets.points[2 * i + 1];
        CHECK(scene.in(c, static_cast<std::size_t>(y), static_cast<std::size_t>(x)) ==
              (sets.point_labels[i] == 1));
        if (sets.point_labels[i] == 0) found.insert(found.end(), {x, y});
      }
      CHECK(found == expected);
    }
  }
}

}  // namespace

int main() {
  likeliest_pixels_are_the_greedy_choice_however_the_runs_are_cut();
  boxes_and_centres_are_what_the_pixels_say();
  negatives_are_the_other_classes_positives();
  return finish();
}
