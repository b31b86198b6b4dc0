// The bodies of the row kernels, inlined into one function for each instruction set by rows.cpp.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#include "dispatch.h"
#include "rows.h"

namespace samdistill::rows {

constexpr std::size_t kBlock = 64;

SAMDISTILL_INLINE inline unsigned lowest_bit(std::uint64_t word) {
  return word == 0 ? 64u : static_cast<unsigned>(__builtin_ctzll(word));  // one tzcnt where there is one
}

// How many edges lie left of pixel x.
SAMDISTILL_INLINE inline std::int32_t edges_before(RowEdges where, std::uint32_t x) {
  const std::uint64_t left = (std::uint64_t{1} << (x % 64)) - 1;
  return where.before[x / 64] + static_cast<std::int32_t>(SAMDISTILL_POPCOUNT64(where.toggles[x / 64] & left));
}

SAMDISTILL_INLINE inline std::size_t edges_body(const std::uint64_t* bits, std::size_t words, std::int32_t base,
                                                RowEdges where, std::int32_t* edges) {
  std::int32_t* next = edges;
  std::uint64_t carry = 0;
  for (std::size_t w = 0; w < words; ++w) {
    std::uint64_t toggles = bits[w] ^ (bits[w] << 1 | carry);
    carry = bits[w] >> 63;
    where.toggles[w] = toggles;
    where.before[w] = static_cast<std::int32_t>(next - edges);
    if (toggles == 0) continue;
    const std::int32_t at = base + static_cast<std::int32_t>(w * 64);
    std::int32_t* write = next;
    next += SAMDISTILL_POPCOUNT64(toggles);
    do {  // four at a time: a branch less often; what is written past `next` is overwritten or ignored
      for (int i = 0; i < 4; ++i) {
        write[i] = at + static_cast<std::int32_t>(lowest_bit(toggles));
        toggles &= toggles - 1;
      }
      write += 4;
    } while (toggles != 0);
  }
  return static_cast<std::size_t>(next - edges);
}

// Joins two trees; the smaller root stays (Rem's algorithm with splicing: Patwary, Blair, Manne 2010).
SAMDISTILL_INLINE inline void join_trees(std::int32_t* parents, std::int32_t a, std::int32_t b) {
  while (parents[a] != parents[b]) {
    if (parents[a] < parents[b]) std::swap(a, b);
    const std::int32_t up = parents[a];
    parents[a] = parents[b];
    if (up == a) return;
    a = up;
  }
}

SAMDISTILL_INLINE inline void join_body(const std::int32_t* edges, std::size_t runs, std::int32_t base, bool diagonal,
                                        RowEdges where, std::int32_t above, std::int32_t first,
                                        std::int32_t* parents) {
  // A run [begin, end) touches those runs above that end after begin (or at it, if diagonals count) and begin
  // before end (or at it). Runs above that have ended = edges left of the one / 2, begun = edges left of the
  // other / 2, rounded up.
  const std::uint32_t begin_shift = diagonal ? 0 : 1, end_shift = diagonal ? 1 : 0;
  for (std::size_t i = 0; i < runs; ++i) {
    const std::uint32_t begin = static_cast<std::uint32_t>(edges[2 * i] - base) + begin_shift;
    const std::uint32_t end = static_cast<std::uint32_t>(edges[2 * i + 1] - base) + end_shift;
    const std::int32_t touched = above + edges_before(where, begin) / 2;
    const std::int32_t past = above + (edges_before(where, end) + 1) / 2;
    const std::int32_t self = first + static_cast<std::int32_t>(i);
    parents[self] = self;
    parents[self] = parents[touched < past ? touched : self];
    for (std::int32_t k = touched + 1; k < past; ++k) join_trees(parents, self, k);
  }
}

typedef float Floats __attribute__((vector_size(32)));
typedef double Doubles __attribute__((vector_size(64)));

SAMDISTILL_INLINE inline void sums_body(const float* map, const std::int32_t* edges, std::size_t runs, double* sums) {
  for (std::size_t i = 0; i < runs; ++i) {
    const float* p = map + edges[2 * i];
    const float* const end = map + edges[2 * i + 1];
    double sum = 0;
    if (end - p >= 8) {
      Doubles lanes = {};
      do {
        Floats eight;
        std::memcpy(&eight, p, sizeof eight);
        lanes += __builtin_convertvector(eight, Doubles);
        p += 8;
      } while (end - p >= 8);
      sum = ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
    }
    for (; p != end; ++p) sum += static_cast<double>(*p);
    sums[i] = sum;
  }
}

typedef std::int32_t Pixels __attribute__((vector_size(64)));

// Fills [from, to) with whole vectors, past `to` too where that stays before `end`.
SAMDISTILL_INLINE inline void fill(std::int32_t* from, std::int32_t* to, const std::int32_t* end, std::int32_t value) {
  if (end - to >= 16) {
    const Pixels sixteen = Pixels{} + value;
    do {
      std::memcpy(from, &sixteen, sizeof sixteen);
      from += 16;
    } while (from < to);
  } else {
    std::fill(from, to, value);
  }
}

SAMDISTILL_INLINE inline void paint_body(const std::int32_t* edges, const std::int32_t* values, std::size_t runs,
                                         std::size_t total, std::int32_t* image) {
  // From first to last: what a fill writes past its end the next one overwrites.
  const std::int32_t* const end = image + total;
  std::int32_t* at = image;
  for (std::size_t i = 0; i < runs; ++i) {
    fill(at, image + edges[2 * i], end, 0);
    at = image + edges[2 * i + 1];
    fill(image + edges[2 * i], at, end, values[i]);
  }
  fill(at, image + total, end, 0);
}

SAMDISTILL_INLINE inline void unite_body(const std::uint64_t* from, std::size_t words, std::uint64_t* __restrict into) {
  for (std::size_t w = 0; w < words; ++w) into[w] |= from[w];
}

SAMDISTILL_INLINE inline void widen_body(std::uint64_t* bits, std::size_t words, unsigned left, unsigned right) {
  unsigned width = 1;  // of what one bit has become: a step can double it
  while (right > 0) {
    const unsigned step = std::min({right, width, 63u});
    for (std::size_t w = words - 1; w > 0; --w) bits[w] |= bits[w] << step | bits[w - 1] >> (64 - step);
    bits[0] |= bits[0] << step;
    width += step;
    right -= step;
  }
  while (left > 0) {
    const unsigned step = std::min({left, width, 63u});
    for (std::size_t w = 0; w + 1 < words; ++w) bits[w] |= bits[w] >> step | bits[w + 1] << (64 - step);
    bits[words - 1] |= bits[words - 1] >> step;
    width += step;
    left -= step;
  }
}

}  // namespace samdistill::rows
