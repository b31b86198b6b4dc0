// One fixed case of each kernel, for benchmarks/count_instructions.py to count under callgrind. Inputs are
// made of integers, so that they are the same everywhere; only what runs inside `measured` is counted.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

#include "components.h"
#include "prompts.h"

using namespace samdistill;

namespace {

constexpr std::size_t kSide = 512, kClasses = 3;

std::uint32_t hash(std::uint32_t x) {
  x = (x ^ 61u ^ (x >> 16)) * 9u;
  x = (x ^ (x >> 4)) * 0x27d4eb2du;
  return x ^ (x >> 15);
}

// Noise on a grid of 32 pixels, interpolated, and a little of a pixel's own: blobs with ragged edges.
float blobs(std::uint32_t seed, std::uint32_t y, std::uint32_t x) {
  const auto corner = [&](std::uint32_t i, std::uint32_t j) { return hash(seed + i * 977 + j) % 256; };
  const std::uint32_t i = y / 32, j = x / 32, v = y % 32, u = x % 32;
  const std::uint32_t top = corner(i, j) * (32 - u) + corner(i, j + 1) * u;
  const std::uint32_t bottom = corner(i + 1, j) * (32 - u) + corner(i + 1, j + 1) * u;
  const std::uint32_t grain = hash(seed + 7 + y * 65536 + x) % 8192;
  return static_cast<float>(top * (32 - v) + bottom * v + grain) / (256 * 1024 + 8192);
}

struct Inputs {
  std::vector<float> maps;
  std::vector<std::uint8_t> blobs, noise;
};

}  // namespace

extern "C" __attribute__((noinline)) std::size_t measured(const char* what, const Inputs& inputs,
                                                          std::vector<std::uint8_t>& masks,
                                                          std::vector<std::int32_t>& image) {
  const float thresholds[kClasses] = {0.5f, 0.5f, 0.5f};
  if (std::strcmp(what, "label_blobs") == 0 || std::strcmp(what, "label_noise") == 0) {
    const std::vector<std::uint8_t>& mask = what[6] == 'b' ? inputs.blobs : inputs.noise;
    const Components found = label_mask(mask.data(), kSide, kSide, true);
    paint(found.edges.data(), found.labels.data(), found.labels.size(), image.size(), image.data());
    return found.regions.size();
  }
  if (std::strcmp(what, "summarize_blobs") == 0)
    return label_map(inputs.maps.data(), kSide, kSide, 0.5f, true, true).regions.size();
  std::vector<FootprintRow> square;
  for (std::int32_t dy = -3; dy <= 4; ++dy) square.push_back({dy, -3, 4});
  const Morphology dilation(Operation::dilation, square);
  const Cleaning how{Keep::likeliest, 0, &dilation};
  if (std::strcmp(what, "clean") == 0) {
    clean(inputs.maps.data(), kClasses, kSide, kSide, thresholds, how, masks.data());
    return 1;
  }
  if (std::strcmp(what, "clean_and_extract") == 0) {
    return clean_and_extract(inputs.maps.data(), kClasses, kSide, kSide, thresholds, how, PromptRules(),
                             masks.data())
        .class_index.size();
  }
  return 0;
}

int main(int count, char** arguments) {
  Inputs inputs;
  for (std::uint32_t c = 0; c < kClasses; ++c) {
    for (std::uint32_t i = 0; i < kSide * kSide; ++i)
      inputs.maps.push_back(blobs(c * 1000, i / kSide, i % kSide));
  }
  for (std::uint32_t i = 0; i < kSide * kSide; ++i) {
    inputs.blobs.push_back(inputs.maps[i] > 0.5f);
    inputs.noise.push_back(hash(i) & 1);
  }
  std::vector<std::uint8_t> masks(inputs.maps.size());
  std::vector<std::int32_t> image(kSide * kSide);
  const std::size_t answer = count < 2 ? 0 : measured(arguments[1], inputs, masks, image);
  std::printf("%s %zu\n", row_kernels().name, answer);
  return answer == 0 ? 1 : 0;
}
