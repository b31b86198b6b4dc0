// Assignment against every permutation, and its statuses.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "assignment.h"
#include "check.h"

namespace {

using samdistill::assign;
using samdistill::AssignStatus;

constexpr double infinity = std::numeric_limits<double>::infinity();

struct Matrix {
  std::size_t rows, cols;
  std::vector<double> values;
  double at(std::size_t r, std::size_t c) const { return values[r * cols + c]; }
};

// The least value over all assignments; infinity where every one is forbidden.
double least_value(const Matrix& m) {
  const std::size_t n = std::min(m.rows, m.cols), wide = std::max(m.rows, m.cols);
  std::vector<std::size_t> order(wide);
  std::iota(order.begin(), order.end(), 0);
  double least = infinity;
  do {
    double value = 0;
    for (std::size_t i = 0; i < n; ++i) value += m.rows <= m.cols ? m.at(i, order[i]) : m.at(order[i], i);
    least = std::min(least, value);
  } while (std::next_permutation(order.begin(), order.end()));
  return least;
}

AssignStatus solve(const Matrix& m, bool maximize, double& value) {
  const std::size_t n = std::min(m.rows, m.cols);
  std::vector<std::int64_t> rows(n, -1), cols(n, -1);
  const AssignStatus status = assign(m.values.data(), m.rows, m.cols, maximize, rows.data(), cols.data());
  value = 0;
  if (status != AssignStatus::ok) return status;
  for (std::size_t i = 0; i < n; ++i) {
    CHECK(i == 0 || rows[i - 1] < rows[i]);
    CHECK(std::count(cols.begin(), cols.end(), cols[i]) == 1);
    value += m.at(static_cast<std::size_t>(rows[i]), static_cast<std::size_t>(cols[i]));
  }
  return status;
}

void small_matrices_are_solved_to_the_optimum() {
  std::mt19937 random(1);
  const double levels[] = {-3, -1, 0, 0.5, 1, 2, 7, infinity};
  for (int trial = 0; trial < 3000; ++trial) {
    Matrix m{1 + random() % 6, 1 + random() % 6, {}};
    for (std::size_t i = 0; i < m.rows * m.cols; ++i) m.values.push_back(levels[random() % 8]);
    const double least = least_value(m);
    double value = 0;
    const AssignStatus status = solve(m, false, value);
    CHECK(status == (least == infinity ? AssignStatus::infeasible : AssignStatus::ok));
    CHECK(least == infinity || value == least);
    for (double& entry : m.values) entry = -entry;
    CHECK(solve(m, true, value) == status);
    CHECK(least == infinity || value == -least);
  }
}

void invalid_entries_are_told() {
  double value = 0;
  for (const double bad : {std::nan(""), -infinity}) {
    Matrix m{2, 2, {1, 2, 3, bad}};
    CHECK(solve(m, false, value) == AssignStatus::invalid);
    m.values[3] = -bad;
    CHECK(solve(m, true, value) == AssignStatus::invalid);
  }
}

void empty_matrices_are_fine() {
  CHECK(assign(nullptr, 0, 3, true, nullptr, nullptr) == AssignStatus::ok);
  CHECK(assign(nullptr, 3, 0, false, nullptr, nullptr) == AssignStatus::ok);
}

}  // namespace

int main() {
  small_matrices_are_solved_to_the_optimum();
  invalid_entries_are_told();
  empty_matrices_are_fine();
  return finish();
}
