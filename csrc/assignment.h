// Rectangular linear assignment by shortest augmenting paths (Crouse 2016).
#pragma once

#include <cstddef>
#include <cstdint>

namespace samdistill {

enum class AssignStatus { ok, invalid, infeasible };

// Chooses min(rows, cols) entries of `weights` (rows x cols, row major), no two in a row or a column, of
// least total weight, or of greatest with `maximize`. An entry of +inf (-inf when maximizing) is forbidden;
// NaN and the other infinity are invalid. Writes min(rows, cols) pairs, sorted by row, to row_index and
// col_index when the status is ok.
AssignStatus assign(const double* weights, std::size_t rows, std::size_t cols, bool maximize,
                    std::int64_t* row_index, std::int64_t* col_index);

}  // namespace samdistill
