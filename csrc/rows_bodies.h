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
SAMDISTILL_INLINE inline std::uint32_t edges_before(RowEdges where, std::uint32_t x) {
  const std::uint64_t left = where.toggles[x / 64] & ~(~std::uint64_t{0} << (x % 64));
  return where.before[x / 64] + static_cast<std::uint32_t>(SAMDISTILL_POPCOUNT64(left));
}

// Writes where the bits of a word are, counted from `at`; up to kEdgeSlack elements more. Four at a time: a
// branch less often.
SAMDISTILL_INLINE inline void portable_places(std::uint64_t word, std::int32_t at, std::int32_t* places) {
  do {
    for (int i = 0; i < 4; ++i) {
      places[i] = at + static_cast<std::int32_t>(lowest_bit(word));
      word &= word - 1;
    }
    places += 4;
  } while (word != 0);
}

// Macros, for the sake of PLACES here and ADDER below, which can only be inlined where their instructions are
// allowed.
#define SAMDISTILL_EDGES(PLACES)                                     \
  std::int32_t* next = edges;                                        \
  std::uint64_t carry = 0;                                           \
  for (std::size_t w = 0; w < words; ++w) {                          \
    const std::uint64_t toggles = bits[w] ^ (bits[w] << 1 | carry);  \
    carry = bits[w] >> 63;                                           \
    where.toggles[w] = toggles;                                      \
    where.before[w] = static_cast<std::uint32_t>(next - edges);      \
    if (toggles == 0) continue;                                      \
    PLACES(toggles, base + static_cast<std::int32_t>(w * 64), next); \
    next += SAMDISTILL_POPCOUNT64(toggles);                          \
  }                                                                  \
  return static_cast<std::size_t>(next - edges)

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

// Keeps the compiler from choosing between two values with a branch.
SAMDISTILL_INLINE inline std::int32_t without_branch(std::int32_t chosen) {
  asm("" : "+r"(chosen));
  return chosen;
}

// A run [begin, end) touches those runs above that end after begin (or at it, if diagonals count) and begin
// before end (or at it). Runs above that have ended = edges left of the one / 2, begun = edges left of the
// other / 2, rounded up.
//
// Whether a run touches a second one above is guesswork in dense rows, whether that is in another tree is
// not: there the second one is looked at in any case, and is the run itself where there is none.
template <bool kDense>
SAMDISTILL_INLINE inline void join_runs(const std::int32_t* edges, std::size_t runs,
                                        std::uint32_t begin_shift, std::uint32_t end_shift, RowEdges where,
                                        std::int32_t above, std::int32_t first,
                                        std::int32_t* __restrict parents) {
  const std::int32_t* const end = edges + 2 * runs;
  for (std::int32_t self = first; edges != end; ++self, edges += 2) {
    const std::uint32_t left = edges_before(where, static_cast<std::uint32_t>(edges[0]) + begin_shift);
    const std::uint32_t right = edges_before(where, static_cast<std::uint32_t>(edges[1]) + end_shift);
    const std::int32_t touched = above + static_cast<std::int32_t>(left / 2);
    const std::int32_t past = above + static_cast<std::int32_t>((right + 1) / 2);
    parents[self] = self;
    const std::int32_t parent = parents[without_branch(touched < past ? touched : self)];
    parents[self] = parent;
    std::int32_t next = touched + 1;
    if (kDense) {
      const std::int32_t second = without_branch(next < past ? next : self);
      if (parents[second] != parent) join_trees(parents, self, second);
      ++next;
    }
    for (; next < past; ++next) join_trees(parents, self, next);
  }
}

SAMDISTILL_INLINE inline void join_body(const std::int32_t* edges, std::size_t runs, std::int32_t base,
                                        std::size_t width, bool diagonal, RowEdges where, std::int32_t above,
                                        std::int32_t first, std::int32_t* parents) {
  const std::uint32_t origin = 0u - static_cast<std::uint32_t>(base);
  const std::uint32_t begin_shift = origin + (diagonal ? 0 : 1), end_shift = origin + (diagonal ? 1 : 0);
  if (runs * 8 > width) {
    join_runs<true>(edges, runs, begin_shift, end_shift, where, above, first, parents);
  } else {
    join_runs<false>(edges, runs, begin_shift, end_shift, where, above, first, parents);
  }
}

// Adds a run, given by its two edges, to a region.
struct Adder {
  std::int32_t base, row;

  Adder(std::int32_t at, std::int32_t y) : base(at), row(y) {}

  SAMDISTILL_INLINE void add(const std::int32_t* edges, Region* region) const {
    const std::int32_t x0 = edges[0] - base, x1 = edges[1] - base;
    const std::int64_t pixels = x1 - x0;
    region->area_px += pixels;
    region->sum_2x += pixels * (std::int64_t{x0} + x1 - 1);
    region->sum_y += pixels * row;
    region->x0 = std::min(region->x0, x0);
    region->x1 = std::max(region->x1, x1);
    region->y1 = row + 1;
  }
};

#define SAMDISTILL_MEASURE(ADDER)                                                           \
  const ADDER adder(base, row);                                                             \
  for (std::size_t i = 0; i < runs; ++i) {                                                  \
    const std::int32_t self = first + static_cast<std::int32_t>(i), parent = parents[self]; \
    std::int32_t label = parents[parent]; /* done, as a parent precedes its child */        \
    if (parent == self) {                                                                   \
      const std::int32_t x = edges[2 * i] - base;                                           \
      regions[found] = {0, 0, 0, 0, x, row, x, row, 0.0};                                   \
      label = static_cast<std::int32_t>(++found);                                           \
    }                                                                                       \
    parents[self] = label;                                                                  \
    Region* const region = regions + (label - 1);                                           \
    adder.add(edges + 2 * i, region);                                                       \
    if (sums != nullptr) region->sum_probability += sums[i];                                \
  }                                                                                         \
  return found

typedef float Floats __attribute__((vector_size(16)));
typedef std::int32_t Lanes __attribute__((vector_size(16)));
typedef double Doubles __attribute__((vector_size(32)));

// sums += the four values at p, of which only the first `count` count.
SAMDISTILL_INLINE inline void add_values(const float* p, std::int32_t count, Doubles& sums) {
  constexpr Lanes kLane = {0, 1, 2, 3};
  Lanes bits;
  std::memcpy(&bits, p, sizeof bits);
  bits &= kLane < (Lanes{} + count);
  Floats values;
  std::memcpy(&values, &bits, sizeof values);
  sums += __builtin_convertvector(values, Doubles);
}

SAMDISTILL_INLINE inline void sums_body(const float* map, std::size_t pixels, const std::int32_t* edges,
                                        std::size_t runs, double* sums) {
  // Sixteen values at a time, those past the run masked away: a loop that is left after one turn most times.
  const std::int32_t readable = static_cast<std::int32_t>(pixels) - 16;
  for (std::size_t i = 0; i < runs; ++i) {
    std::int32_t at = edges[2 * i];
    const std::int32_t end = edges[2 * i + 1];
    Doubles a = {}, b = {}, c = {}, d = {};
    while (at < end && at <= readable) {
      const float* const p = map + at;
      add_values(p, end - at, a);
      add_values(p + 4, end - at - 4, b);
      add_values(p + 8, end - at - 8, c);
      add_values(p + 12, end - at - 12, d);
      at += 16;
    }
    a = (a + b) + (c + d);
    double sum = (a[0] + a[2]) + (a[1] + a[3]);
    for (; at < end; ++at) sum += static_cast<double>(map[at]);
    sums[i] = sum;
  }
}

typedef std::int32_t Pixels __attribute__((vector_size(64)));
constexpr std::size_t kPixels = 16;

SAMDISTILL_INLINE inline void store(std::int32_t* to, const Pixels& pixels) {
  std::memcpy(to, &pixels, sizeof pixels);
}

SAMDISTILL_INLINE inline void paint_body(const std::int32_t* edges, const std::int32_t* values,
                                         std::size_t runs, std::size_t total, std::int32_t* image) {
  // The background is painted a piece ahead of the runs. A run is painted in whole vectors, past its end too,
  // and background is put back there: few branches, whatever the lengths. Near the image's end there is no
  // room.
  constexpr std::size_t kPiece = 16 * kPixels;
  std::size_t painted = 0, i = 0;
  for (; i < runs; ++i) {
    const std::size_t begin = static_cast<std::size_t>(edges[2 * i]);
    const std::size_t end = static_cast<std::size_t>(edges[2 * i + 1]);
    if (end + kPixels > total) break;
    while (painted < begin) {
      const std::size_t next = std::min(painted + kPiece, total);
      if (next - painted == kPiece) {
        for (std::size_t k = 0; k < kPiece; k += kPixels) store(image + painted + k, Pixels{});
      } else {
        std::fill(image + painted, image + next, 0);
      }
      painted = next;
    }
    const Pixels label = Pixels{} + values[i];
    std::size_t at = begin;
    do {
      store(image + at, label);
      at += kPixels;
    } while (at < end);
    store(image + end, Pixels{});
    painted = std::max(painted, end + kPixels);
  }
  if (painted < total) std::memset(image + painted, 0, (total - painted) * sizeof(std::int32_t));
  for (; i < runs; ++i) std::fill(image + edges[2 * i], image + edges[2 * i + 1], values[i]);
}

SAMDISTILL_INLINE inline void unite_body(const std::uint64_t* from, std::size_t words,
                                         std::uint64_t* __restrict into) {
  for (std::size_t w = 0; w < words; ++w) into[w] |= from[w];
}

SAMDISTILL_INLINE inline void widen_body(std::uint64_t* bits, std::size_t words, unsigned left,
                                         unsigned right) {
  unsigned width = 1;  // of what one bit has become: a step can double it
  while (right > 0) {
    const unsigned step = std::min({right, width, 63u});
    for (std::size_t w = words - 1; w > 0; --w) bits[w] |= bits[w] << step | bits[w - 1] >> (64 - step);
    bits[0] |= bits[0] << step;
    width += step;
    right -= step;
  }
  width = 1;  // what a bit near the end became may have left the words: a longer step would leave a gap
  while (left > 0) {
    const unsigned step = std::min({left, width, 63u});
    for (std::size_t w = 0; w + 1 < words; ++w) bits[w] |= bits[w] >> step | bits[w + 1] << (64 - step);
    bits[words - 1] |= bits[words - 1] >> step;
    width += step;
    left -= step;
  }
}

}  // namespace samdistill::rows
