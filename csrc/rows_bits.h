// Pixels to bits and back, 64 at a time, once for each instruction set. Included by rows.cpp alone.
//
// Block<...> types: bytes(p) and floats(p, threshold, &ordered) make the bits of 64 pixels, spread(bits, p)
// writes 64 bytes of 0 or 1.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "dispatch.h"
#include "rows.h"

#ifdef SAMDISTILL_X86_TARGETS
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored \
    "-Wmaybe-uninitialized"  // GCC 12 takes its own "undefined" vectors for mistakes
#include <immintrin.h>
#pragma GCC diagnostic pop
#else
#include <immintrin.h>
#endif
#endif

namespace samdistill::rows {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "bits are gathered from bytes in memory order");

constexpr std::uint64_t every_byte(std::uint8_t value) { return 0x0101010101010101u * value; }

// 0x80 in each byte that is not 0.
constexpr std::uint64_t byte_tops(std::uint64_t bytes) {
  return (((bytes & every_byte(0x7f)) + every_byte(0x7f)) | bytes) & every_byte(0x80);
}

inline std::uint64_t portable_bytes(const std::uint8_t* p) {
  std::uint64_t bits = 0;
  for (unsigned i = 0; i < 8; ++i) {
    std::uint64_t bytes;
    std::memcpy(&bytes, p + 8 * i, 8);
    // The product moves the lowest bit of byte k to bit 56 + k.
    bits |= (((byte_tops(bytes) >> 7) * 0x0102040810204080u) >> 56) << (8 * i);
  }
  return bits;
}

inline std::uint64_t portable_floats(const float* p, float threshold, bool* ordered) {
  std::uint8_t above[64];
  unsigned unordered = 0;
  for (unsigned i = 0; i < 64; ++i) {
    above[i] = static_cast<std::uint8_t>(p[i] > threshold);
    unordered |= static_cast<unsigned>(p[i] != p[i]);
  }
  *ordered &= unordered == 0;
  return portable_bytes(above);
}

inline void portable_spread(std::uint64_t bits, std::uint8_t* p) {
  for (unsigned i = 0; i < 8; ++i) {
    const std::uint64_t chosen = every_byte(static_cast<std::uint8_t>(bits >> (8 * i))) & 0x8040201008040201u;
    const std::uint64_t bytes = byte_tops(chosen) >> 7;
    std::memcpy(p + 8 * i, &bytes, 8);
  }
}

#ifdef SAMDISTILL_X86_TARGETS

// SSE2 is part of every x86-64.
inline std::uint64_t sse2_bytes(const std::uint8_t* p) {
  std::uint64_t zeros = 0;
  for (unsigned i = 0; i < 4; ++i) {
    const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 16 * i));
    const int equal = _mm_movemask_epi8(_mm_cmpeq_epi8(v, _mm_setzero_si128()));
    zeros |= static_cast<std::uint64_t>(static_cast<unsigned>(equal)) << (16 * i);
  }
  return ~zeros;
}

inline std::uint64_t sse2_floats(const float* p, float threshold, bool* ordered) {
  const __m128 t = _mm_set1_ps(threshold);
  __m128 unordered = _mm_setzero_ps();
  std::uint64_t bits = 0;
  for (unsigned i = 0; i < 16; i += 2) {
    const __m128 a = _mm_loadu_ps(p + 4 * i);
    const __m128 b = _mm_loadu_ps(p + 4 * i + 4);
    const int both = _mm_movemask_ps(_mm_cmpgt_ps(a, t)) | _mm_movemask_ps(_mm_cmpgt_ps(b, t)) << 4;
    bits |= static_cast<std::uint64_t>(static_cast<unsigned>(both)) << (4 * i);
    unordered = _mm_or_ps(unordered, _mm_cmpunord_ps(a, b));
  }
  *ordered &= _mm_movemask_ps(unordered) == 0;
  return bits;
}

#define SAMDISTILL_AVX2 __attribute__((target("avx2,bmi,bmi2,popcnt")))
#define SAMDISTILL_AVX512 \
  __attribute__((target("avx2,bmi,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi2")))

SAMDISTILL_AVX2 inline std::uint64_t avx2_bytes(const std::uint8_t* p) {
  const __m256i zero = _mm256_setzero_si256();
  const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32));
  const unsigned low = static_cast<unsigned>(_mm256_movemask_epi8(_mm256_cmpeq_epi8(a, zero)));
  const unsigned high = static_cast<unsigned>(_mm256_movemask_epi8(_mm256_cmpeq_epi8(b, zero)));
  return ~(low | static_cast<std::uint64_t>(high) << 32);
}

SAMDISTILL_AVX2 inline std::uint64_t avx2_floats(const float* p, float threshold, bool* ordered) {
  const __m256 t = _mm256_set1_ps(threshold);
  __m256 unordered = _mm256_setzero_ps();
  std::uint64_t bits = 0;
  for (unsigned i = 0; i < 8; i += 2) {
    const __m256 a = _mm256_loadu_ps(p + 8 * i);
    const __m256 b = _mm256_loadu_ps(p + 8 * i + 8);
    const int both = _mm256_movemask_ps(_mm256_cmp_ps(a, t, _CMP_GT_OQ)) |
                     _mm256_movemask_ps(_mm256_cmp_ps(b, t, _CMP_GT_OQ)) << 8;
    bits |= static_cast<std::uint64_t>(static_cast<unsigned>(both)) << (8 * i);
    unordered = _mm256_or_ps(unordered, _mm256_cmp_ps(a, b, _CMP_UNORD_Q));
  }
  *ordered &= _mm256_movemask_ps(unordered) == 0;
  return bits;
}

SAMDISTILL_AVX2 inline void avx2_spread(std::uint64_t bits, std::uint8_t* p) {
  const __m256i which_byte = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1,  //
                                              2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
  const __m256i which_bit = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201u));
  for (unsigned i = 0; i < 2; ++i) {
    const __m256i half = _mm256_set1_epi32(static_cast<int>(static_cast<std::uint32_t>(bits >> (32 * i))));
    const __m256i chosen = _mm256_and_si256(_mm256_shuffle_epi8(half, which_byte), which_bit);
    const __m256i bytes = _mm256_and_si256(_mm256_cmpeq_epi8(chosen, which_bit), _mm256_set1_epi8(1));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 32 * i), bytes);
  }
}

// Adds a run, given by its two edges, to a region.
struct Avx2Adder {
  __m128i base, rows;
  __m256i factors;

  SAMDISTILL_AVX2 Avx2Adder(std::int32_t at, std::int32_t row)
      : base(_mm_set1_epi32(at)),
        rows(_mm_setr_epi32(row, row + 1, 0, 0)),
        factors(_mm256_setr_epi64x(1, -1, row, 0)) {}

  SAMDISTILL_AVX2 void add(const std::int32_t* edges, Region* region) const {
    const __m128i x =
        _mm_sub_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(edges)), base);  // x0, x1
    const __m128i swapped = _mm_shuffle_epi32(x, _MM_SHUFFLE(2, 3, 0, 1));
    const __m256i pixels = _mm256_broadcastd_epi32(_mm_sub_epi32(swapped, x));
    const __m256i sum = _mm256_broadcastd_epi32(_mm_add_epi32(swapped, x));
    const __m256i weights = _mm256_add_epi32(factors, _mm256_and_si256(sum, _mm256_setr_epi64x(0, -1, 0, 0)));
    auto* const moments = reinterpret_cast<__m256i*>(&region->area_px);
    _mm256_store_si256(moments,
                       _mm256_add_epi64(_mm256_load_si256(moments), _mm256_mul_epu32(pixels, weights)));
    auto* const box = reinterpret_cast<__m128i*>(&region->x0);
    const __m128i old = _mm_load_si128(box), run = _mm_unpacklo_epi32(x, rows);  // x0, y0, x1, y1
    _mm_store_si128(box, _mm_blend_epi32(_mm_min_epi32(old, run), _mm_max_epi32(old, run), 0b1100));
  }
};

SAMDISTILL_AVX512 inline std::uint64_t avx512_bytes(const std::uint8_t* p) {
  const __m512i v = _mm512_loadu_si512(p);
  return _mm512_test_epi8_mask(v, v);
}

SAMDISTILL_AVX512 inline std::uint64_t avx512_floats(const float* p, float threshold, bool* ordered) {
  const __m512 t = _mm512_set1_ps(threshold);
  const __m512 a = _mm512_loadu_ps(p), b = _mm512_loadu_ps(p + 16);
  const __m512 c = _mm512_loadu_ps(p + 32), d = _mm512_loadu_ps(p + 48);
  const std::uint64_t a_bits = _mm512_cmp_ps_mask(a, t, _CMP_GT_OQ);
  const std::uint64_t b_bits = _mm512_cmp_ps_mask(b, t, _CMP_GT_OQ);
  const std::uint64_t c_bits = _mm512_cmp_ps_mask(c, t, _CMP_GT_OQ);
  const std::uint64_t d_bits = _mm512_cmp_ps_mask(d, t, _CMP_GT_OQ);
  const unsigned unordered = static_cast<unsigned>(_mm512_cmp_ps_mask(a, b, _CMP_UNORD_Q)) |
                             static_cast<unsigned>(_mm512_cmp_ps_mask(c, d, _CMP_UNORD_Q));
  *ordered &= unordered == 0;
  return a_bits | b_bits << 16 | c_bits << 32 | d_bits << 48;
}

SAMDISTILL_AVX512 inline void avx512_spread(std::uint64_t bits, std::uint8_t* p) {
  _mm512_storeu_si512(p, _mm512_maskz_set1_epi8(bits, 1));
}

SAMDISTILL_AVX512 inline void avx512_places(std::uint64_t word, std::int32_t at, std::int32_t* places) {
  alignas(64) static constexpr std::uint8_t kCount[64] = {
      0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21,
      22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43,
      44, 45, 46, 47, 48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63};
  const __m512i start = _mm512_set1_epi32(at);
  const __m512i found = _mm512_maskz_compress_epi8(word, _mm512_load_si512(kCount));
  const __m128i parts[4] = {_mm512_castsi512_si128(found), _mm512_extracti32x4_epi32(found, 1),
                            _mm512_extracti32x4_epi32(found, 2), _mm512_extracti32x4_epi32(found, 3)};
  const int count = static_cast<int>(_mm_popcnt_u64(word));
  const int wanted = count <= 16 ? 1 : count <= 48 ? 3 : 4;  // two branches that are mostly taken alike
  for (int i = 0; i < wanted; ++i) {
    _mm512_storeu_si512(places + 16 * i, _mm512_add_epi32(start, _mm512_cvtepu8_epi32(parts[i])));
  }
}

#endif  // SAMDISTILL_X86_TARGETS

}  // namespace samdistill::rows
