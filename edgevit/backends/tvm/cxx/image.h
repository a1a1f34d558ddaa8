// An image's pixels, raw or in a binary PPM file, checked against what the model takes before they are read.
#ifndef EDGEVIT_IMAGE_H_
#define EDGEVIT_IMAGE_H_

#include <algorithm>
#include <cctype>
#include <cstdint>
#include <string>

#include "file.h"
#include "manifest.h"

namespace edgevit {

constexpr int64_t kPpmHeader = 4096;  // bytes, comments included

inline int64_t ppm_number(const File& file, const std::string& head, size_t& at) {
  while (at < head.size() && (std::isspace(static_cast<unsigned char>(head[at])) || head[at] == '#')) {
    if (head[at] == '#') at = std::min(head.find('\n', at), head.size());
    else ++at;
  }
  int64_t value = -1;
  for (; at < head.size() && head[at] >= '0' && head[at] <= '9' && value < 1 << 20; ++at)
    value = 10 * std::max<int64_t>(value, 0) + (head[at] - '0');
  if (value < 0) fail(kImage, file.path() + " is a damaged PPM file");
  return value;
}

inline std::string size_of(const Manifest& manifest) {
  return std::to_string(manifest.width) + " x " + std::to_string(manifest.height);
}

inline int64_t ppm_pixels(const File& file, const Manifest& manifest) {  // where they begin
  std::string head(static_cast<size_t>(std::min(file.size(), kPpmHeader)), '\0');
  file.read(&head[0], static_cast<int64_t>(head.size()), 0);
  if (head.compare(0, 2, "P6")) fail(kImage, file.path() + " is not a binary PPM file (P6)");
  size_t at = 2;
  const int64_t width = ppm_number(file, head, at), height = ppm_number(file, head, at);
  const int64_t most = ppm_number(file, head, at);
  if (width != manifest.width || height != manifest.height)
    fail(kImage, "the model takes an image of " + size_of(manifest) + ", " + file.path() + " is " +
                     std::to_string(width) + " x " + std::to_string(height) +
                     "; resize and crop as the manifest's preprocessing says");
  if (most != 255)
    fail(kImage, file.path() + " has values up to " + std::to_string(most) + "; the model takes 8 bits, 255");
  if (at == head.size() || !std::isspace(static_cast<unsigned char>(head[at])))
    fail(kImage, file.path() + " is a damaged PPM file");
  return static_cast<int64_t>(at) + 1;
}

// Reads the pixels of one image to `to`, which has room for them.
inline void read_pixels(const std::string& path, const Manifest& manifest, char* to) {
  const File file(path, kImage);
  const bool ppm = path.size() > 4 && path.compare(path.size() - 4, 4, ".ppm") == 0;
  const int64_t start = ppm ? ppm_pixels(file, manifest) : 0, expected = manifest.image_bytes();
  if (file.size() - start != expected)
    fail(kImage, path + " has " + std::to_string(file.size()) + " bytes; the model takes uint8 RGB, " +
                     size_of(manifest) + ": " + std::to_string(expected) + " bytes" +
                     (ppm ? " behind the header" : file.size() == 4 * expected ? " (is this float32?)" : ""));
  file.read(to, expected, start);
}

}  // namespace edgevit

#endif  // EDGEVIT_IMAGE_H_
