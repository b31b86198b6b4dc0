// D. F. Crouse, "On implementing 2D rectangular assignment algorithms", IEEE Trans. Aerospace and Electronic
// Systems 52(4), 2016: the shortest augmenting path algorithm of pp. 1685-1686, after Jonker and Volgenant.
// Two things are ours: rows whose cheapest column is free take it at once (u = row minimum, v = 0 is dual
// feasible, so the start is optimal for those rows), and the scan of a row runs over all columns without
// branches or indirection: a column that is done has v = -inf in the scan's copy, which prices it at +inf.
#include "assignment.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "dispatch.h"

namespace samdistill {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr std::int32_t none = -1;

// Relaxes every column through row i, whose reduced distance is `offset`; returns the least open distance.
SAMDISTILL_CLONES
double relax(const double* __restrict costs, const double* __restrict v, double offset, std::int64_t i,
             std::int64_t cols, double* __restrict distance, std::int64_t* __restrict parent) {
  double lowest = infinity;
#pragma omp simd reduction(min : lowest)
  for (std::int64_t j = 0; j < cols; ++j) {
    const double through = offset + (costs[j] - v[j]);
    const double before = distance[j];
    const bool better = through < before;
    const double now = better ? through : before;
    parent[j] = better ? i : parent[j];
    distance[j] = now;
    lowest = now < lowest ? now : lowest;
  }
  return lowest;
}

// The first of values from .. n - 1 that equals `level`, or none.
SAMDISTILL_CLONES
std::int64_t next_at(const double* values, std::int64_t from, std::int64_t n, double level) {
  constexpr std::int64_t lanes = 8;
  for (; from + lanes <= n; from += lanes) {
    std::int64_t hits = 0;
    for (std::int64_t lane = 0; lane < lanes; ++lane) hits |= values[from + lane] == level ? 1 : 0;
    if (hits != 0) break;
  }
  for (; from < n; ++from) {
    if (values[from] == level) return from;
  }
  return none;
}

// A column at `lowest`, a free one if there is one: it ends the path. None where no open column can be
// reached: `lowest` is then infinite or, with compilers that begin a reduction there, the largest number.
std::int64_t choose(const double* distance, const std::vector<std::int32_t>& row_of, double lowest) {
  if (lowest == infinity) return none;
  const auto cols = static_cast<std::int64_t>(row_of.size());
  const std::int64_t first = next_at(distance, 0, cols, lowest);
  for (std::int64_t j = first; j != none; j = next_at(distance, j + 1, cols, lowest)) {
    if (row_of[static_cast<std::size_t>(j)] == none) return j;
  }
  return first;
}

// The algorithm proper, on costs (rows <= cols) with +inf for forbidden entries; col_of gets each row's
// column.
bool solve(const std::vector<double>& costs, std::size_t rows, std::size_t cols,
           std::vector<std::int32_t>& col_of) {
  std::vector<std::int32_t> row_of(cols, none);
  std::vector<double> u(rows), v(cols, 0.0), open_v(cols), open(cols), final_distance(cols);
  std::vector<std::int64_t> parent(cols);
  std::vector<std::size_t> done_cols;
  done_cols.reserve(rows);

  for (std::size_t i = 0; i < rows; ++i) {
    const double* row = costs.data() + i * cols;
    const double* least = std::min_element(row, row + cols);
    if (*least == infinity) return false;
    u[i] = *least;
    const auto j = static_cast<std::size_t>(least - row);
    if (row_of[j] != none) continue;
    row_of[j] = static_cast<std::int32_t>(i);
    col_of[i] = static_cast<std::int32_t>(j);
  }

  for (std::size_t start = 0; start < rows; ++start) {
    if (col_of[start] != none) continue;
    open_v = v;
    std::fill(open.begin(), open.end(), infinity);
    done_cols.clear();
    double lowest = 0.0;
    std::size_t i = start, sink = 0;
    while (true) {
      lowest = relax(costs.data() + i * cols, open_v.data(), lowest - u[i], static_cast<std::int64_t>(i),
                     static_cast<std::int64_t>(cols), open.data(), parent.data());
      const std::int64_t chosen = choose(open.data(), row_of, lowest);
      if (chosen == none) return false;
      const auto j = static_cast<std::size_t>(chosen);
      if (row_of[j] == none) {
        sink = j;
        break;
      }
      final_distance[j] = lowest;
      done_cols.push_back(j);
      open[j] = infinity;
      open_v[j] = -infinity;
      i = static_cast<std::size_t>(row_of[j]);
    }
    u[start] += lowest;
    for (const std::size_t j : done_cols) {
      u[static_cast<std::size_t>(row_of[j])] += lowest - final_distance[j];
      v[j] -= lowest - final_distance[j];
    }
    for (std::size_t j = sink;;) {
      const auto row = static_cast<std::size_t>(parent[j]);
      row_of[j] = static_cast<std::int32_t>(row);
      const std::int32_t next = col_of[row];
      col_of[row] = static_cast<std::int32_t>(j);
      if (row == start) break;
      j = static_cast<std::size_t>(next);
    }
  }
  return true;
}

}  // namespace

AssignStatus assign(const double* weights, std::size_t rows, std::size_t cols, bool maximize,
                    std::int64_t* row_index, std::int64_t* col_index) {
  if (rows == 0 || cols == 0) return AssignStatus::ok;
  const bool turned = cols < rows;
  const std::size_t short_side = std::min(rows, cols), long_side = std::max(rows, cols);
  std::vector<double> costs(rows * cols);
  for (std::size_t r = 0; r < rows; ++r) {
    for (std::size_t c = 0; c < cols; ++c) {
      const double cost = maximize ? -weights[r * cols + c] : weights[r * cols + c];
      if (!(cost > -infinity)) return AssignStatus::invalid;
      costs[turned ? c * rows + r : r * cols + c] = cost;
    }
  }
  std::vector<std::int32_t> long_of(short_side, none);
  if (!solve(costs, short_side, long_side, long_of)) return AssignStatus::infeasible;

  if (!turned) {
    for (std::size_t r = 0; r < rows; ++r) {
      row_index[r] = static_cast<std::int64_t>(r);
      col_index[r] = long_of[r];
    }
    return AssignStatus::ok;
  }
  std::vector<std::int32_t> col_of(rows, none);
  for (std::size_t c = 0; c < cols; ++c)
    col_of[static_cast<std::size_t>(long_of[c])] = static_cast<std::int32_t>(c);
  std::size_t n = 0;
  for (std::size_t r = 0; r < rows; ++r) {
    if (col_of[r] == none) continue;
    row_index[n] = static_cast<std::int64_t>(r);
    col_index[n++] = col_of[r];
  }
  return AssignStatus::ok;
}

}  // namespace samdistill
