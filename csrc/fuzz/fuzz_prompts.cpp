// Any maps and rules: boxes and points lie where they must, labels say what the masks say, NaN is always met.
#include <cmath>
#include <limits>
#include <vector>

#include "bytes.h"
#include "prompts.h"

using namespace samdistill;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Bytes bytes(data, size);
  const std::size_t classes = bytes.between(1, 4), height = bytes.between(1, 40),
                    width = bytes.between(1, 200);
  const std::size_t pixels = height * width;
  PromptRules rules;
  rules.per_component = bytes.flag();
  rules.points = static_cast<PointRule>(bytes.between(0, 2));
  rules.count = static_cast<std::int32_t>(bytes.between(1, 40));
  const double spreads[] = {0, 0.5, 1, 2.5, 9, 60, 1e9, 1e300};
  rules.spread_px = spreads[bytes.between(0, 7)];
  rules.snap = bytes.flag();
  rules.negatives = bytes.flag();
  rules.seed = bytes.next();

  const auto side = static_cast<std::int32_t>(bytes.between(0, 4));
  std::vector<FootprintRow> rows;
  for (std::int32_t dy = -side; dy <= side; ++dy) rows.push_back({dy, -side, side});
  const Morphology morphology(bytes.flag() ? Operation::erosion : Operation::dilation, rows);
  Cleaning cleaning;
  cleaning.keep = static_cast<Keep>(bytes.between(0, 2));
  cleaning.min_area_px = static_cast<std::int64_t>(bytes.between(0, 9));
  if (side > 0) cleaning.morphology = &morphology;

  // Runs of equal values, as maps have them: a byte for the value, one for how long it lasts.
  std::vector<float> maps(classes * pixels, 0.f);
  bool any_nan = false;
  for (std::size_t i = 0; i < maps.size();) {
    const std::uint8_t value = bytes.next();
    const std::size_t last = i + 1 + bytes.next();
    for (; i < last && i < maps.size(); ++i)
      maps[i] = value == 255 ? std::nanf("") : static_cast<float>(value) / 254;
    any_nan |= value == 255;
  }
  const std::vector<float> thresholds(classes, 0.5f);
  std::vector<std::uint8_t> masks(maps.size(), 2);
  PromptSets sets;
  try {
    sets = clean_and_extract(maps.data(), classes, height, width, thresholds.data(), cleaning, rules,
                             masks.data());
    PROMISE(!any_nan);
  } catch (const NotANumber& error) {
    PROMISE(any_nan && error.index < maps.size() && std::isnan(maps[error.index]));
    return 0;
  }

  const std::size_t count = sets.class_index.size();
  PROMISE(sets.boxes.size() == 4 * count && sets.offsets.size() == count + 1 &&
          sets.component.size() == count);
  PROMISE(sets.points.size() == 2 * sets.point_labels.size());
  PROMISE(sets.offsets.back() == static_cast<std::int64_t>(sets.point_labels.size()));
  for (std::size_t s = 0; s < count; ++s) {
    const std::uint8_t* mask = masks.data() + static_cast<std::size_t>(sets.class_index[s]) * pixels;
    const float* box = sets.boxes.data() + 4 * s;
    PROMISE(0 <= box[0] && box[0] < box[2] && box[2] <= static_cast<float>(width));
    PROMISE(0 <= box[1] && box[1] < box[3] && box[3] <= static_cast<float>(height));
    PROMISE((rules.points == PointRule::none) == (sets.offsets[s] == sets.offsets[s + 1]));
    for (auto i = static_cast<std::size_t>(sets.offsets[s]);
         i < static_cast<std::size_t>(sets.offsets[s + 1]); ++i) {
      const float x = sets.points[2 * i], y = sets.points[2 * i + 1];
      const bool positive = sets.point_labels[i] == 1;
      if (positive) PROMISE(box[0] <= x && x < box[2] && box[1] <= y && y < box[3]);
      if (rules.points == PointRule::centre && !rules.snap) continue;
      const std::uint8_t inside = mask[static_cast<std::size_t>(y) * width + static_cast<std::size_t>(x)];
      PROMISE(inside == (positive ? 1 : 0));
    }
  }
  return 0;
}
