// Any matrix: the assignment is one, the transposed and the negated matrix have the same value, and no swap
// of two rows' columns, nor a move to a free column, betters it.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "assignment.h"
#include "bytes.h"

namespace {

using samdistill::assign;
using samdistill::AssignStatus;

struct Answer {
  AssignStatus status;
  std::vector<std::int64_t> rows, cols;
  double value;
};

Answer solve(const std::vector<double>& weights, std::size_t rows, std::size_t cols, bool maximize) {
  const std::size_t n = std::min(rows, cols);
  Answer answer{AssignStatus::ok, std::vector<std::int64_t>(n), std::vector<std::int64_t>(n), 0};
  answer.status = assign(weights.data(), rows, cols, maximize, answer.rows.data(), answer.cols.data());
  if (answer.status != AssignStatus::ok) return answer;
  std::vector<bool> taken(cols, false);
  for (std::size_t i = 0; i < n; ++i) {
    const auto r = static_cast<std::size_t>(answer.rows[i]), c = static_cast<std::size_t>(answer.cols[i]);
    PROMISE(r < rows && c < cols && !taken[c] && (i == 0 || answer.rows[i - 1] < answer.rows[i]));
    taken[c] = true;
    answer.value += weights[r * cols + c];
  }
  return answer;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Bytes bytes(data, size);
  const std::size_t rows = bytes.between(0, 24), cols = bytes.between(0, 24);
  const bool maximize = bytes.flag();
  const double infinity = std::numeric_limits<double>::infinity();
  const double forbidden = maximize ? -infinity : infinity;
  std::vector<double> weights(rows * cols), turned(rows * cols), negated(rows * cols);
  for (std::size_t i = 0; i < weights.size(); ++i) {
    const std::uint8_t byte = bytes.next();
    weights[i] = byte == 255 ? forbidden : byte == 254 ? std::nan("") : byte - 100.0;
    turned[i % cols * rows + i / cols] = weights[i];
    negated[i] = -weights[i];
  }
  const Answer answer = solve(weights, rows, cols, maximize);
  const Answer other = solve(turned, cols, rows, maximize), mirror = solve(negated, rows, cols, !maximize);
  PROMISE(answer.status == other.status && answer.status == mirror.status);
  if (answer.status != AssignStatus::ok) return 0;
  PROMISE(answer.value == other.value && answer.value == -mirror.value);

  const double sign = maximize ? 1 : -1;
  const auto at = [&](std::int64_t r, std::int64_t c) {
    return sign * weights[static_cast<std::size_t>(r) * cols + static_cast<std::size_t>(c)];
  };
  for (std::size_t i = 0; i < answer.rows.size(); ++i) {
    for (std::size_t j = 0; j < i; ++j) {
      PROMISE(at(answer.rows[i], answer.cols[j]) + at(answer.rows[j], answer.cols[i]) <=
              at(answer.rows[i], answer.cols[i]) + at(answer.rows[j], answer.cols[j]));
    }
    for (std::int64_t c = 0; rows <= cols && c < static_cast<std::int64_t>(cols); ++c) {
      if (std::find(answer.cols.begin(), answer.cols.end(), c) != answer.cols.end()) continue;
      PROMISE(at(answer.rows[i], c) <= at(answer.rows[i], answer.cols[i]));
    }
  }
  return 0;
}
