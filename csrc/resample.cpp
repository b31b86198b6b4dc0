#include "resample.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "dispatch.h"

#ifdef SAMDISTILL_X86_TARGETS
#include <immintrin.h>
#endif

namespace samdistill {
namespace {

constexpr int kPrecision = 32 - 8 - 2;  // bits of a weight behind the point; 8 for the pixel, 2 to spare
constexpr std::int32_t kHalf = 1 << (kPrecision - 1);
constexpr std::size_t kChannels = 3;

// Which inputs make an output, and how much each counts; `most` weights an output, an even number, those past
// its own 0.
struct Taps {
  std::vector<std::size_t> first, count;
  std::vector<double> weights;
  std::size_t most;
};

// Pillow's precompute_coeffs for a triangle of half width 1.
Taps taps_of(std::size_t from, std::size_t to) {
  const double scale = static_cast<double>(from) / static_cast<double>(to);
  const double support = std::max(scale, 1.0), inverse = 1.0 / support;
  Taps taps;
  taps.most = static_cast<std::size_t>(std::ceil(support)) * 2 + 2;
  taps.first.resize(to);
  taps.count.resize(to);
  taps.weights.assign(to * taps.most, 0.0);
  for (std::size_t i = 0; i < to; ++i) {
    const double centre = (static_cast<double>(i) + 0.5) * scale;
    const auto low = std::max<std::int64_t>(static_cast<std::int64_t>(centre - support + 0.5), 0);
    const auto high =
        std::min(static_cast<std::int64_t>(centre + support + 0.5), static_cast<std::int64_t>(from));
    double* weights = taps.weights.data() + i * taps.most;
    double sum = 0;
    for (std::int64_t x = low; x < high; ++x) {
      const double distance = std::abs((static_cast<double>(x) - centre + 0.5) * inverse);
      const double weight = distance < 1.0 ? 1.0 - distance : 0.0;
      weights[x - low] = weight;
      sum += weight;
    }
    for (std::int64_t x = low; x < high && sum != 0; ++x) weights[x - low] /= sum;
    taps.first[i] = static_cast<std::size_t>(low);
    taps.count[i] = static_cast<std::size_t>(high - low);
  }
  return taps;
}

std::vector<std::int32_t> fixed(const std::vector<double>& weights) {
  std::vector<std::int32_t> whole(weights.size());
  std::transform(weights.begin(), weights.end(), whole.begin(),
                 [](double weight) { return static_cast<std::int32_t>(0.5 + weight * (1 << kPrecision)); });
  return whole;
}

inline SAMDISTILL_INLINE std::uint8_t rounded(std::int32_t sum) {
  return static_cast<std::uint8_t>(std::clamp(sum >> kPrecision, 0, 255));
}

// One row of RGB, its outputs one after the other.
void resize_row(const std::uint8_t* row, const Taps& taps, const std::vector<std::int32_t>& weights,
                std::uint8_t* out) {
  const std::int32_t* weight = weights.data();
  for (std::size_t x = 0; x < taps.first.size(); ++x, out += kChannels, weight += taps.most) {
    const std::uint8_t* pixel = row + kChannels * taps.first[x];
    std::int32_t sums[kChannels] = {kHalf, kHalf, kHalf};
    for (std::size_t t = 0; t < taps.count[x]; ++t, pixel += kChannels) {
      for (std::size_t c = 0; c < kChannels; ++c) sums[c] += pixel[c] * weight[t];
    }
    for (std::size_t c = 0; c < kChannels; ++c) out[c] = rounded(sums[c]);
  }
}

#ifdef SAMDISTILL_X86_TARGETS
// The same two inputs at a time, a lane a channel and an idle one. Reads up to 8 bytes past the row and
// writes one past its output. taps.most is even.
__attribute__((target("avx2"))) void resize_row_avx2(const std::uint8_t* row, const Taps& taps,
                                                     const std::vector<std::int32_t>& weights,
                                                     std::uint8_t* out) {
  const __m128i spread = _mm_setr_epi8(0, 1, 2, -1, 3, 4, 5, -1, -1, -1, -1, -1, -1, -1, -1, -1);
  const __m256i first_and_second = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);
  const std::int32_t* weight = weights.data();
  for (std::size_t x = 0; x < taps.first.size(); ++x, out += kChannels, weight += taps.most) {
    const std::uint8_t* pixel = row + kChannels * taps.first[x];
    __m256i sums = _mm256_setr_epi32(kHalf, kHalf, kHalf, 0, 0, 0, 0, 0);
    for (std::size_t t = 0; t < taps.count[x]; t += 2, pixel += 2 * kChannels) {
      const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(pixel));
      const __m256i pair = _mm256_cvtepu8_epi32(_mm_shuffle_epi8(bytes, spread));
      const __m128i both = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(weight + t));
      const __m256i each = _mm256_permutevar8x32_epi32(_mm256_castsi128_si256(both), first_and_second);
      sums = _mm256_add_epi32(sums, _mm256_mullo_epi32(pair, each));
    }
    const __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
    const __m128i words = _mm_packs_epi32(_mm_srai_epi32(sum, kPrecision), _mm_setzero_si128());
    const int group = _mm_cvtsi128_si32(_mm_packus_epi16(words, words));
    std::memcpy(out, &group, sizeof group);
  }
}
#endif

// All rows; past the last one, nothing may be read or written.
void resize_rows(const std::uint8_t* image, Size from, std::size_t width, std::uint8_t* out) {
  const Taps taps = taps_of(from.width, width);
  const std::vector<std::int32_t> weights = fixed(taps.weights);
  const std::size_t in_bytes = kChannels * from.width, out_bytes = kChannels * width;
  std::size_t y = 0;
#ifdef SAMDISTILL_X86_TARGETS
  if (__builtin_cpu_supports("avx2")) {
    for (; y + 3 < from.height; ++y)
      resize_row_avx2(image + y * in_bytes, taps, weights, out + y * out_bytes);
  }
#endif
  for (; y < from.height; ++y) resize_row(image + y * in_bytes, taps, weights, out + y * out_bytes);
}

// One output row out of `count` input rows of `bytes` bytes each.
SAMDISTILL_CLONES void blend_bytes(const std::uint8_t* __restrict rows, const std::int32_t* weights,
                                   std::size_t count, std::size_t bytes, std::int32_t* __restrict sums,
                                   std::uint8_t* __restrict out) {
  for (std::size_t i = 0; i < bytes; ++i) sums[i] = kHalf;
  for (std::size_t t = 0; t < count; ++t) {
    const std::int32_t weight = weights[t];
    for (std::size_t i = 0; i < bytes; ++i) sums[i] += rows[t * bytes + i] * weight;
  }
  for (std::size_t i = 0; i < bytes; ++i) out[i] = rounded(sums[i]);
}

SAMDISTILL_CLONES void blend_floats(const float* __restrict rows, const double* weights, std::size_t count,
                                    std::size_t width, double* __restrict sums, float* __restrict out) {
  if (count == 2) {  // enlarged
    const double above = weights[0], below = weights[1];
    const float* __restrict next = rows + width;
    for (std::size_t i = 0; i < width; ++i) {
      out[i] =
          static_cast<float>(static_cast<double>(rows[i]) * above + static_cast<double>(next[i]) * below);
    }
    return;
  }
  for (std::size_t i = 0; i < width; ++i) sums[i] = 0;
  for (std::size_t t = 0; t < count; ++t) {
    const double weight = weights[t];
    for (std::size_t i = 0; i < width; ++i) sums[i] += static_cast<double>(rows[t * width + i]) * weight;
  }
  for (std::size_t i = 0; i < width; ++i) out[i] = static_cast<float>(sums[i]);
}

// Some rows side by side, a lane a row: `columns` holds kRows values for each input.
constexpr std::size_t kRows = 8;
SAMDISTILL_CLONES void stretch_floats(const double* __restrict columns, const std::size_t* first,
                                      const std::size_t* count, const double* weights, std::size_t most,
                                      std::size_t outputs, float* __restrict out) {
  for (std::size_t x = 0; x < outputs; ++x, weights += most) {
    const double* column = columns + first[x] * kRows;
    double sums[kRows] = {};
    for (std::size_t t = 0; t < count[x]; ++t, column += kRows) {
      for (std::size_t r = 0; r < kRows; ++r) sums[r] += column[r] * weights[t];
    }
    for (std::size_t r = 0; r < kRows; ++r) out[r * outputs + x] = static_cast<float>(sums[r]);
  }
}

}  // namespace

void resize_rgb(const std::uint8_t* image, Size from, Size to, std::uint8_t* out) {
  const std::size_t bytes = kChannels * to.width;
  std::vector<std::uint8_t> narrow;
  if (from.width != to.width) {
    if (from.height == to.height) return resize_rows(image, from, to.width, out);
    narrow.resize(from.height * bytes);
    resize_rows(image, from, to.width, narrow.data());
    image = narrow.data();
  }
  if (from.height == to.height) {
    std::memcpy(out, image, from.height * bytes);
    return;
  }
  const Taps taps = taps_of(from.height, to.height);
  const std::vector<std::int32_t> weights = fixed(taps.weights);
  std::vector<std::int32_t> sums(bytes);
  for (std::size_t y = 0; y < to.height; ++y) {
    blend_bytes(image + taps.first[y] * bytes, weights.data() + y * taps.most, taps.count[y], bytes,
                sums.data(), out + y * bytes);
  }
}

void resize_map(const float* map, Size from, Size to, float* out) {
  std::vector<float> stretched;
  if (from.width != to.width) {
    const Taps taps = taps_of(from.width, to.width);
    const std::size_t blocks = (from.height + kRows - 1) / kRows;
    std::vector<double> columns(from.width * kRows);
    stretched.resize(blocks * kRows * to.width);
    for (std::size_t b = 0; b < blocks; ++b) {
      const std::size_t rows = std::min(kRows, from.height - b * kRows);
      for (std::size_t r = 0; r < rows; ++r) {
        const float* row = map + (b * kRows + r) * from.width;
        for (std::size_t x = 0; x < from.width; ++x) columns[x * kRows + r] = static_cast<double>(row[x]);
      }
      stretch_floats(columns.data(), taps.first.data(), taps.count.data(), taps.weights.data(), taps.most,
                     to.width, stretched.data() + b * kRows * to.width);
    }
    map = stretched.data();
  }
  if (from.height == to.height) {
    std::memcpy(out, map, from.height * to.width * sizeof(float));
    return;
  }
  const Taps taps = taps_of(from.height, to.height);
  std::vector<double> sums(to.width);
  for (std::size_t y = 0; y < to.height; ++y) {
    blend_floats(map + taps.first[y] * to.width, taps.weights.data() + y * taps.most, taps.count[y], to.width,
                 sums.data(), out + y * to.width);
  }
}

}  // namespace samdistill
