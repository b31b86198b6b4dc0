#include "nms.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "dispatch.h"

namespace samdistill {
namespace {

// Boxes by coordinate, in the order they are looked at, so that the inner loop is a vector's; `dropped` is as
// wide as a coordinate for the same reason.
template <typename Real>
struct Columns {
  using Flag = std::conditional_t<sizeof(Real) == 4, std::int32_t, std::int64_t>;
  explicit Columns(std::size_t n) : x0(n), y0(n), x1(n), y1(n), area(n), dropped(n, 0) {}
  std::vector<Real> x0, y0, x1, y1, area;
  std::vector<Flag> dropped;
};

// Drops those of boxes first .. count - 1 whose IoU with box i is greater than `limit`.
template <typename Real, typename Flag>
inline SAMDISTILL_INLINE void drop_body(const Real* __restrict x0, const Real* __restrict y0,
                                        const Real* __restrict x1, const Real* __restrict y1,
                                        const Real* __restrict area, Flag* __restrict dropped, std::size_t i,
                                        std::size_t count, Real limit) {
  const Real left = x0[i], top = y0[i], right = x1[i], bottom = y1[i], own = area[i];
  for (std::size_t j = i + 1; j < count; ++j) {
    Real width = (x1[j] < right ? x1[j] : right) - (x0[j] > left ? x0[j] : left);
    Real height = (y1[j] < bottom ? y1[j] : bottom) - (y0[j] > top ? y0[j] : top);
    width = width > 0 ? width : 0;
    height = height > 0 ? height : 0;
    const Real both = width * height;
    dropped[j] |= both / (own + area[j] - both) > limit ? 1 : 0;
  }
}

// One function a type: clones cannot be made of templates.
SAMDISTILL_CLONES
void drop(Columns<float>& boxes, std::size_t i, float limit) {
  drop_body(boxes.x0.data(), boxes.y0.data(), boxes.x1.data(), boxes.y1.data(), boxes.area.data(),
            boxes.dropped.data(), i, boxes.area.size(), limit);
}

SAMDISTILL_CLONES
void drop(Columns<double>& boxes, std::size_t i, double limit) {
  drop_body(boxes.x0.data(), boxes.y0.data(), boxes.x1.data(), boxes.y1.data(), boxes.area.data(),
            boxes.dropped.data(), i, boxes.area.size(), limit);
}

// The greatest Real that is not above x: y > x is then y > it for every Real y.
template <typename Real>
Real not_above(double x) {
  const auto near = static_cast<Real>(x);
  return static_cast<double>(near) > x ? std::nextafter(near, -std::numeric_limits<Real>::infinity()) : near;
}

}  // namespace

template <typename Real>
std::vector<std::int64_t> nms(const Real* boxes, const std::int64_t* order, std::size_t count, double iou) {
  Columns<Real> sorted(count);
  for (std::size_t i = 0; i < count; ++i) {
    const Real* box = boxes + 4 * order[i];
    sorted.x0[i] = box[0], sorted.y0[i] = box[1], sorted.x1[i] = box[2], sorted.y1[i] = box[3];
    sorted.area[i] = (box[2] - box[0]) * (box[3] - box[1]);
  }
  const Real limit = not_above<Real>(iou);
  std::vector<std::int64_t> kept;
  for (std::size_t i = 0; i < count; ++i) {
    if (sorted.dropped[i]) continue;
    kept.push_back(order[i]);
    drop(sorted, i, limit);
  }
  return kept;
}

template std::vector<std::int64_t> nms<float>(const float*, const std::int64_t*, std::size_t, double);
template std::vector<std::int64_t> nms<double>(const double*, const std::int64_t*, std::size_t, double);

}  // namespace samdistill
