#include "masks.h"

#include <algorithm>
#include <cstring>

#include "dispatch.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace samdistill {
namespace {

// 64 bytes to 64 bits, set where the byte is not 0.
inline std::uint64_t pack64(const std::uint8_t* bytes) {
  std::uint64_t word = 0;
#if defined(__SSE2__)
  for (int quarter = 0; quarter < 4; ++quarter) {
    const __m128i sixteen = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes + 16 * quarter));
    const int zero = _mm_movemask_epi8(_mm_cmpeq_epi8(sixteen, _mm_setzero_si128()));
    word |= static_cast<std::uint64_t>(~zero & 0xffff) << (16 * quarter);
  }
#else
  for (int i = 0; i < 64; ++i) word |= static_cast<std::uint64_t>(bytes[i] != 0) << i;
#endif
  return word;
}

using Overlap = std::int64_t (*)(const std::uint64_t*, const std::uint64_t*, std::size_t);

inline SAMDISTILL_INLINE std::int64_t overlap_body(const std::uint64_t* a, const std::uint64_t* b,
                                                   std::size_t n) {
  std::int64_t sum = 0;
  for (std::size_t i = 0; i < n; ++i) sum += SAMDISTILL_POPCOUNT64(a[i] & b[i]);
  return sum;
}

std::int64_t overlap_portable(const std::uint64_t* a, const std::uint64_t* b, std::size_t n) {
  return overlap_body(a, b, n);
}

#if defined(SAMDISTILL_X86_TARGETS)
__attribute__((target("popcnt"))) std::int64_t overlap_popcnt(const std::uint64_t* a, const std::uint64_t* b,
                                                              std::size_t n) {
  return overlap_body(a, b, n);
}

__attribute__((target("avx512f,avx512vl,avx512vpopcntdq"))) std::int64_t overlap_avx512(
    const std::uint64_t* a, const std::uint64_t* b, std::size_t n) {
  return overlap_body(a, b, n);
}
#endif

Overlap fastest() {
#if defined(SAMDISTILL_X86_TARGETS)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vpopcntdq")) return overlap_avx512;
  if (__builtin_cpu_supports("popcnt")) return overlap_popcnt;
#endif
  return overlap_portable;
}

std::int64_t overlap(const std::uint64_t* a, const std::uint64_t* b, std::size_t n) {
  static const Overlap chosen = fastest();
  return chosen(a, b, n);
}

}  // namespace

PackedMasks::PackedMasks(const std::uint8_t* masks, std::size_t count, std::size_t height, std::size_t width)
    : count_(count),
      height_(height),
      width_(width),
      columns_((width + 63) / 64),
      words_(columns_ * count * height),
      extents_(count, Extent{height, 0, columns_, 0}),
      areas_(count, 0) {
  for (std::size_t k = 0; k < count; ++k) {
    for (std::size_t y = 0; y < height; ++y) pack_row(masks + (k * height + y) * width, k, y);
    for (std::size_t column = 0; column < columns_; ++column) {
      areas_[k] += overlap(words(column, k), words(column, k), height);
    }
  }
}

void PackedMasks::pack_row(const std::uint8_t* pixels, std::size_t k, std::size_t y) {
  Extent& extent = extents_[k];
  for (std::size_t column = 0; column < columns_; ++column) {
    const std::size_t left = width_ - 64 * column;
    std::uint64_t word;
    if (left >= 64) {
      word = pack64(pixels + 64 * column);
    } else {
      std::uint8_t rest[64] = {};
      std::memcpy(rest, pixels + 64 * column, left);
      word = pack64(rest);
    }
    if (word == 0) continue;  // the words start as zeros
    words_[(column * count_ + k) * height_ + y] = word;
    extent.top = std::min(extent.top, y);
    extent.bottom = y + 1;
    extent.left = std::min(extent.left, column);
    extent.right = std::max(extent.right, column + 1);
  }
}

void mask_iou(const PackedMasks& a, const PackedMasks& b, double* iou) {
  std::vector<std::int64_t> shared(a.count() * b.count(), 0);
  // Word columns outermost: one column of all masks stays in the cache while every pair passes.
  for (std::size_t column = 0; column < a.columns(); ++column) {
    for (std::size_t i = 0; i < a.count(); ++i) {
      const PackedMasks::Extent& one = a.extent(i);
      if (column < one.left || column >= one.right) continue;
      for (std::size_t j = 0; j < b.count(); ++j) {
        const PackedMasks::Extent& other = b.extent(j);
        const std::size_t top = std::max(one.top, other.top), bottom = std::min(one.bottom, other.bottom);
        if (column < other.left || column >= other.right || top >= bottom) continue;
        shared[i * b.count() + j] +=
            overlap(a.words(column, i) + top, b.words(column, j) + top, bottom - top);
      }
    }
  }
  for (std::size_t i = 0; i < a.count(); ++i) {
    for (std::size_t j = 0; j < b.count(); ++j) {
      const std::int64_t both = shared[i * b.count() + j], either = a.area(i) + b.area(j) - both;
      iou[i * b.count() + j] = either == 0 ? 1.0 : static_cast<double>(both) / static_cast<double>(either);
    }
  }
}

}  // namespace samdistill
