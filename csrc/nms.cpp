#include "nms.h"

#include <algorithm>

namespace samdistill {

template <typename Real>
std::vector<std::int64_t> nms(const Real* boxes, const std::int64_t* order, std::size_t count, double iou) {
  // By coordinate, in order, so that the inner loop is a vector's.
  std::vector<Real> x0(count), y0(count), x1(count), y1(count), area(count);
  for (std::size_t i = 0; i < count; ++i) {
    const Real* box = boxes + 4 * order[i];
    x0[i] = box[0], y0[i] = box[1], x1[i] = box[2], y1[i] = box[3];
    area[i] = (x1[i] - x0[i]) * (y1[i] - y0[i]);
  }
  std::vector<std::uint8_t> dropped(count, 0);
  std::vector<std::int64_t> kept;
  for (std::size_t i = 0; i < count; ++i) {
    if (dropped[i]) continue;
    kept.push_back(order[i]);
    for (std::size_t j = i + 1; j < count; ++j) {
      const Real width = std::max(Real(0), std::min(x1[i], x1[j]) - std::max(x0[i], x0[j]));
      const Real height = std::max(Real(0), std::min(y1[i], y1[j]) - std::max(y0[i], y0[j]));
      const Real both = width * height;
      const Real ratio = both / (area[i] + area[j] - both);
      dropped[j] |= static_cast<std::uint8_t>(static_cast<double>(ratio) > iou);
    }
  }
  return kept;
}

template std::vector<std::int64_t> nms<float>(const float*, const std::int64_t*, std::size_t, double);
template std::vector<std::int64_t> nms<double>(const double*, const std::int64_t*, std::size_t, double);

}  // namespace samdistill
