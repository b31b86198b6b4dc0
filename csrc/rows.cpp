#include "rows.h"

#include <cstring>

#include "dispatch.h"
#include "rows_bits.h"
#include "rows_bodies.h"

namespace samdistill {
namespace rows {
namespace {

// Whole blocks are read where they lie, the last, partial one from a copy that is padded with 0. (A macro
// and not a template: the blocks' functions can only be inlined where their instruction set is allowed.)
#define SAMDISTILL_ROW_KERNELS(TARGET, NAME, BYTES, FLOATS, SPREAD, PLACES, ADDER)                           \
  TARGET void NAME##_bits_of_bytes(const std::uint8_t* row, std::size_t width, std::uint64_t* bits) {        \
    const std::size_t blocks = width / kBlock, rest = width % kBlock, words = words_for(width);              \
    for (std::size_t b = 0; b < blocks; ++b) bits[b] = BYTES(row + kBlock * b);                              \
    for (std::size_t w = blocks; w < words; ++w) bits[w] = 0;                                                \
    if (rest != 0) {                                                                                         \
      std::uint8_t padded[kBlock] = {};                                                                      \
      std::memcpy(padded, row + kBlock * blocks, rest);                                                      \
      bits[blocks] = BYTES(padded);                                                                          \
    }                                                                                                        \
  }                                                                                                          \
  TARGET bool NAME##_bits_of_floats(const float* row, std::size_t width, float threshold,                    \
                                    std::uint64_t* bits) {                                                   \
    const std::size_t blocks = width / kBlock, rest = width % kBlock, words = words_for(width);              \
    bool ordered = true;                                                                                     \
    for (std::size_t b = 0; b < blocks; ++b) bits[b] = FLOATS(row + kBlock * b, threshold, &ordered);        \
    for (std::size_t w = blocks; w < words; ++w) bits[w] = 0;                                                \
    if (rest != 0) {                                                                                         \
      float padded[kBlock] = {};                                                                             \
      std::memcpy(padded, row + kBlock * blocks, rest * sizeof(float));                                      \
      bits[blocks] = FLOATS(padded, threshold, &ordered) & ((std::uint64_t{1} << rest) - 1);                 \
    }                                                                                                        \
    return ordered;                                                                                          \
  }                                                                                                          \
  TARGET void NAME##_bytes_of_bits(const std::uint64_t* bits, std::size_t width, std::uint8_t* row) {        \
    const std::size_t blocks = width / kBlock, rest = width % kBlock;                                        \
    for (std::size_t b = 0; b < blocks; ++b) SPREAD(bits[b], row + kBlock * b);                              \
    if (rest != 0) {                                                                                         \
      std::uint8_t padded[kBlock];                                                                           \
      SPREAD(bits[blocks], padded);                                                                          \
      std::memcpy(row + kBlock * blocks, padded, rest);                                                      \
    }                                                                                                        \
  }                                                                                                          \
  TARGET std::size_t NAME##_edges(const std::uint64_t* bits, std::size_t words, std::int32_t base,           \
                                  RowEdges where, std::int32_t* edges) {                                     \
    SAMDISTILL_EDGES(PLACES);                                                                                \
  }                                                                                                          \
  TARGET void NAME##_join(const std::int32_t* edges, std::size_t runs, std::int32_t base, std::size_t width, \
                          bool diagonal, RowEdges where, std::int32_t above, std::int32_t first,             \
                          std::int32_t* parents) {                                                           \
    join_body(edges, runs, base, width, diagonal, where, above, first, parents);                             \
  }                                                                                                          \
  TARGET std::size_t NAME##_measure(const std::int32_t* edges, const double* sums, std::size_t runs,         \
                                    std::int32_t base, std::int32_t row, std::int32_t first,                 \
                                    std::int32_t* parents, Region* regions, std::size_t found) {             \
    SAMDISTILL_MEASURE(ADDER);                                                                               \
  }                                                                                                          \
  TARGET void NAME##_sums(const float* map, std::size_t pixels, const std::int32_t* edges, std::size_t runs, \
                          double* sums) {                                                                    \
    sums_body(map, pixels, edges, runs, sums);                                                               \
  }                                                                                                          \
  TARGET void NAME##_paint(const std::int32_t* edges, const std::int32_t* values, std::size_t runs,          \
                           std::size_t total, std::int32_t* image) {                                         \
    paint_body(edges, values, runs, total, image);                                                           \
  }                                                                                                          \
  TARGET void NAME##_unite(const std::uint64_t* from, std::size_t words, std::uint64_t* into) {              \
    unite_body(from, words, into);                                                                           \
  }                                                                                                          \
  TARGET void NAME##_widen(std::uint64_t* bits, std::size_t words, unsigned left, unsigned right) {          \
    widen_body(bits, words, left, right);                                                                    \
  }                                                                                                          \
  const RowKernels NAME##_kernels = {                                                                        \
      #NAME,        NAME##_bits_of_bytes, NAME##_bits_of_floats, NAME##_bytes_of_bits,                       \
      NAME##_edges, NAME##_join,          NAME##_measure,        NAME##_sums,                                \
      NAME##_paint, NAME##_unite,         NAME##_widen};

SAMDISTILL_ROW_KERNELS(, portable, portable_bytes, portable_floats, portable_spread, portable_places, Adder)
#ifdef SAMDISTILL_X86_TARGETS
SAMDISTILL_ROW_KERNELS(, sse2, sse2_bytes, sse2_floats, portable_spread, portable_places, Adder)
SAMDISTILL_ROW_KERNELS(SAMDISTILL_AVX2, avx2, avx2_bytes, avx2_floats, avx2_spread, portable_places,
                       Avx2Adder)
SAMDISTILL_ROW_KERNELS(SAMDISTILL_AVX512, avx512, avx512_bytes, avx512_floats, avx512_spread, avx512_places,
                       Avx2Adder)
#endif

struct Tables {
  const RowKernels* list[4];
  std::size_t count = 0;

  Tables() noexcept {
    list[count++] = &portable_kernels;
#ifdef SAMDISTILL_X86_TARGETS
    list[count++] = &sse2_kernels;
    __builtin_cpu_init();
    const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") &&
                    __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt");
    if (v3) list[count++] = &avx2_kernels;
    if (v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vbmi2")) {  // Ice Lake, Zen 4 and later
      list[count++] = &avx512_kernels;
    }
#endif
  }
};

const Tables& tables() noexcept {
  static const Tables found;
  return found;
}

}  // namespace
}  // namespace rows

const RowKernels& row_kernels() noexcept {
  const rows::Tables& found = rows::tables();
  return *found.list[found.count - 1];
}

const RowKernels* const* all_row_kernels(std::size_t* count) noexcept {
  *count = rows::tables().count;
  return rows::tables().list;
}

}  // namespace samdistill
