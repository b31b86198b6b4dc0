// Mask overlap and box suppression, counted pixel by pixel and pair by pair.
#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

#include "check.h"
#include "masks.h"
#include "nms.h"

namespace {

void overlaps_are_counted_right() {
  std::mt19937 random(2);
  for (const std::size_t width : {1, 7, 63, 64, 65, 128, 200}) {
    const std::size_t height = 1 + random() % 9, pixels = height * width;
    const std::size_t counts[] = {random() % 5, 1 + random() % 4};
    std::vector<std::uint8_t> sets[2];
    for (int s = 0; s < 2; ++s) {
      for (std::size_t k = 0; k < counts[s]; ++k) {
        const unsigned share = random() % 4;  // 0: an empty mask
        for (std::size_t i = 0; i < pixels; ++i)
          sets[s].push_back(static_cast<std::uint8_t>(random() % 4 < share));
      }
    }
    const samdistill::PackedMasks a(sets[0].data(), counts[0], height, width);
    const samdistill::PackedMasks b(sets[1].data(), counts[1], height, width);
    std::vector<double> iou(counts[0] * counts[1]);
    samdistill::mask_iou(a, b, iou.data());
    for (std::size_t i = 0; i < counts[0]; ++i) {
      for (std::size_t j = 0; j < counts[1]; ++j) {
        int both = 0, either = 0;
        for (std::size_t x = 0; x < pixels; ++x) {
          both += sets[0][i * pixels + x] & sets[1][j * pixels + x];
          either += sets[0][i * pixels + x] | sets[1][j * pixels + x];
        }
        CHECK(iou[i * counts[1] + j] == (either == 0 ? 1.0 : double(both) / either));
      }
    }
  }
}

void suppression_keeps_the_best_of_each_heap() {
  std::mt19937 random(3);
  for (int trial = 0; trial < 200; ++trial) {
    const std::size_t count = random() % 40;
    std::vector<float> boxes;
    std::vector<std::int64_t> order;
    for (std::size_t i = 0; i < count; ++i) {
      const auto x = static_cast<float>(random() % 9), y = static_cast<float>(random() % 9);
      boxes.insert(boxes.end(), {x, y, x + 1 + static_cast<float>(random() % 6), y + 2});
      order.push_back(static_cast<std::int64_t>(i));
    }
    std::shuffle(order.begin(), order.end(), random);
    std::vector<std::int64_t> expected;
    for (const std::int64_t i : order) {
      const float* p = boxes.data() + 4 * i;
      const bool keep = std::none_of(expected.begin(), expected.end(), [&](std::int64_t k) {
        const float* q = boxes.data() + 4 * k;
        const float both = std::max(0.f, std::min(p[2], q[2]) - std::max(p[0], q[0])) *
                           std::max(0.f, std::min(p[3], q[3]) - std::max(p[1], q[1]));
        return both / ((p[2] - p[0]) * 2 + (q[2] - q[0]) * 2 - both) > 0.25f;
      });
      if (keep) expected.push_back(i);
    }
    CHECK(samdistill::nms(boxes.data(), order.data(), count, 0.25) == expected);
    const std::vector<double> wide(boxes.begin(), boxes.end());
    CHECK(samdistill::nms(wide.data(), order.data(), count, 0.25) == expected);
  }
}

}  // namespace

int main() {
  overlaps_are_counted_right();
  suppression_keeps_the_best_of_each_heap();
  return finish();
}
