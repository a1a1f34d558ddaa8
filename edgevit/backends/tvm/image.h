// An image's pixels, raw or in a binary PPM file, checked against what the model takes.
#ifndef EDGEVIT_IMAGE_H_
#define EDGEVIT_IMAGE_H_

#include <algorithm>
#include <cctype>
#include <cstdint>
#include <string>

#include "manifest.h"

namespace edgevit {

inline int64_t ppm_number(const std::string& path, const std::string& data, size_t& at) {
  while (at < data.size() && (std::isspace(static_cast<unsigned char>(data[at])) || data[at] == '#')) {
    if (data[at] == '#') at = std::min(data.find('\n', at), data.size());
    else ++at;
  }
  int64_t value = -1;
  for (; at < data.size() && data[at] >= '0' && data[at] <= '9' && value < 1 << 20; ++at)
    value = 10 * std::max<int64_t>(value, 0) + (data[at] - '0');
  if (value < 0) fail(kImage, path + " is a damaged PPM file");
  return value;
}

inline std::string pixels(const std::string& path, const Manifest& manifest) {
  const std::string data = read_file(path, kImage);
  const std::string size = std::to_string(manifest.width) + " x " + std::to_string(manifest.height);
  const size_t expected = static_cast<size_t>(manifest.height) * manifest.width * 3;
  size_t start = 0;
  if (path.size() > 4 && path.compare(path.size() - 4, 4, ".ppm") == 0) {
    if (data.compare(0, 2, "P6")) fail(kImage, path + " is not a binary PPM file (P6)");
    start = 2;
    const int64_t width = ppm_number(path, data, start), height = ppm_number(path, data, start);
    const int64_t most = ppm_number(path, data, start);
    if (width != manifest.width || height != manifest.height)
      fail(kImage, "the model takes an image of " + size + ", " + path + " is " + std::to_string(width) + " x " +
                       std::to_string(height) + "; resize and crop as the manifest's preprocessing says");
    if (most != 255) fail(kImage, path + " has values up to " + std::to_string(most) + "; the model takes 8 bits, 255");
    ++start;
  }
  if (data.size() - std::min(start, data.size()) != expected)
    fail(kImage, path + " has " + std::to_string(data.size()) + " bytes; the model takes uint8 RGB, " + size + ": " +
                     std::to_string(expected) + " bytes" +
                     (start ? " behind the header" : data.size() == 4 * expected ? " (is this float32?)" : ""));
  return data.substr(start);
}

}  // namespace edgevit

#endif  // EDGEVIT_IMAGE_H_
