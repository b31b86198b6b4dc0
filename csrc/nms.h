// Greedy non-maximum suppression of boxes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace samdistill {

// Goes through `count` xyxy boxes in the given order and drops each whose IoU with a kept one is greater than
// `iou`; returns the kept entries of `order`. Arithmetic in Real, as torchvision.ops.nms has it.
template <typename Real>
std::vector<std::int64_t> nms(const Real* boxes, const std::int64_t* order, std::size_t count, double iou);

extern template std::vector<std::int64_t> nms<float>(const float*, const std::int64_t*, std::size_t, double);
extern template std::vector<std::int64_t> nms<double>(const double*, const std::int64_t*, std::size_t,
                                                      double);

}  // namespace samdistill
