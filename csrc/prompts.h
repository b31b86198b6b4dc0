// Prompts out of cleaned class masks and their probability maps.
//
// Sources: the likeliest pixels and the outer box are knowledge mining's, centres of exclusive pixels and
// negatives are those of "SAM Carries the Burden". docs/kernels.md says how.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "components.h"
#include "morphology.h"

namespace samdistill {

enum class PointRule { none, likeliest, centre };

struct PromptRules {
  bool per_component = false;  // a set for each 8-connected component, not one for the class
  PointRule points = PointRule::likeliest;
  std::int32_t count = 5;  // likeliest points of a set, at most
  double spread_px = 0.0;  // least distance between them
  bool snap = true;        // centres move to the nearest of their pixels
  bool negatives = false;  // positive points of the other classes as background
  std::uint64_t seed = 0;  // decides between equally likely pixels
};

// Prompt sets, class after class; the points of set i are points[2 * offsets[i]] up to points[2 * offsets[i +
// 1]].
struct PromptSets {
  std::vector<std::int32_t> class_index;
  std::vector<std::int32_t> component;  // number in raster order of first pixels, from 1; 0 for a whole class
  std::vector<float> boxes;             // xyxy half-open
  std::vector<float> points;            // xy, pixel centres at integers
  std::vector<std::int32_t> point_labels;
  std::vector<std::int64_t> offsets{0};
};

// Prompts of masks that are clean already, all of one size; maps: one probability map for each, without NaN.
PromptSets extract_prompts(const float* maps, const std::vector<BitImage>& masks, const PromptRules& rules);

// Cleans each of `classes` maps and extracts the prompts, without leaving bits in between. Writes the cleaned
// masks, 0 and 1, unless mask_bytes is null. height * width < 2^31. Throws NotANumber.
PromptSets clean_and_extract(const float* maps, std::size_t classes, std::size_t height, std::size_t width,
                             const float* thresholds, const Cleaning& how, const PromptRules& rules,
                             std::uint8_t* mask_bytes);

}  // namespace samdistill
