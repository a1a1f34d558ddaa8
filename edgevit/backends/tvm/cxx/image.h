// An image file as the model's input: its own pixels where it holds just these, or a picture, which is resized and cropped
// as the model's training did.
#ifndef EDGEVIT_IMAGE_H_
#define EDGEVIT_IMAGE_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "bundle.h"
#include "decode.h"
#include "exif.h"
#include "file.h"
#include "manifest.h"
#include "picture.h"
#include "resize.h"

namespace edgevit {

inline std::string size_of(int64_t width, int64_t height) {
  return std::to_string(width) + " x " + std::to_string(height);
}

inline bool ends(const std::string& path, const char* with) {  // in small letters
  const size_t count = std::strlen(with);
  return path.size() > count && std::equal(with, with + count, path.end() - static_cast<long>(count),
                                           [](char a, char b) { return a == (b >= 'A' && b <= 'Z' ? b | 32 : b); });
}

struct Size {
  int64_t width, height;
};

// To what a picture is resized before the crop, with the roundings of training's: ties to even but for `center`.
inline Size resized(int64_t width, int64_t height, const Preprocessing& how) {
  const double wide = std::floor(how.width / how.crop_pct), high = std::floor(how.height / how.crop_pct);
  const auto w = static_cast<double>(width), h = static_cast<double>(height);
  if (how.crop_mode == "squash") return {static_cast<int64_t>(wide), static_cast<int64_t>(high)};
  if (how.crop_mode == "center" && wide == high) {
    if (width <= height) return {static_cast<int64_t>(wide), static_cast<int64_t>(wide * h / w)};
    return {static_cast<int64_t>(wide * w / h), static_cast<int64_t>(wide)};
  }
  const double ratio = how.crop_mode == "border" ? std::max(h / high, w / wide) : std::min(h / high, w / wide);
  return {std::llrint(w / ratio), std::llrint(h / ratio)};
}

// Where the crop begins in the resized picture; below zero where it is padded.
inline int64_t offset(int64_t have, int64_t need) {
  if (have >= need) return std::llrint(static_cast<double>(have - need) / 2);
  return -((need - have) / 2);
}

// Writes the picture as the model takes it to `to`.
inline void prepare(Picture picture, const Preprocessing& how, const Limits& limits, uint8_t* to) {
  if (how.upright) picture = upright(std::move(picture));
  const Size size = resized(picture.width, picture.height, how);
  if (size.width < 1 || size.height < 1 || size.width > limits.resized / size.height)
    fail(kImage, size_of(picture.width, picture.height) + " pixels is no shape to crop a square from");
  const int64_t left = offset(size.width, how.width), top = offset(size.height, how.height);
  const Window seen{std::max<int64_t>(left, 0), std::max<int64_t>(top, 0), std::min(left + how.width, size.width),
                    std::min(top + how.height, size.height)};
  const Picture made = resize(picture, size.width, size.height, how.interpolation, seen);
  uint8_t fill[3] = {0, 0, 0};
  for (int c = 0; c < 3 && how.crop_mode == "border"; ++c) fill[c] = static_cast<uint8_t>(std::lrint(255 * how.mean[c]));
  for (int64_t i = 0; i < how.width * how.height; ++i) std::copy_n(fill, 3, to + 3 * i);
  for (int64_t y = 0; y < made.height; ++y)
    std::copy_n(made.at(0, y), 3 * made.width, to + 3 * ((y + seen.top - top) * how.width + seen.left - left));
}

inline void read_raw(const File& file, const Manifest& manifest, char* to) {
  const int64_t expected = manifest.image_bytes();
  if (file.size() != expected)
    fail(kImage, "it is no JPEG, PNG or PPM (P6) file, and has " + std::to_string(file.size()) +
                     " bytes; the model takes uint8 RGB, " + size_of(manifest.width, manifest.height) + ": " +
                     std::to_string(expected) + " bytes" + (file.size() == 4 * expected ? " (is this float32?)" : ""));
  file.read(to, expected, 0);
}

// Files of other names are looked at: pixels begin with anything, pictures do not.
inline bool is_picture(const File& file) {
  if (ends(file.path(), ".raw") || ends(file.path(), ".rgb")) return false;
  uint8_t head[8] = {};
  const Bytes begin{head, static_cast<size_t>(std::min<int64_t>(file.size(), sizeof head))};
  file.read(head, static_cast<int64_t>(begin.size), 0);
  return is_jpeg(begin) || is_png(begin) || is_ppm(begin);
}

inline void read_picture(const File& file, const Manifest& manifest, const Bundle& bundle, char* to) {
  const Limits limits;
  std::string raw = file.text(limits.bytes);
  Picture picture = decode({reinterpret_cast<const uint8_t*>(raw.data()), raw.size()}, limits, bundle.preprocessing.upright);
  raw = std::string();
  if (bundle.there) return prepare(std::move(picture), bundle.preprocessing, limits, reinterpret_cast<uint8_t*>(to));
  if (picture.width != manifest.width || picture.height != manifest.height)
    fail(kImage, "the model takes an image of " + size_of(manifest.width, manifest.height) + ", this is " +
                     size_of(picture.width, picture.height) +
                     "; without manifest.json beside the model nothing says how to resize it");
  std::copy_n(picture.pixels, manifest.image_bytes(), reinterpret_cast<uint8_t*>(to));
}

// Reads one image to `to`, which has room for what the model takes.
inline void read_image(const std::string& path, const Manifest& manifest, const Bundle& bundle, char* to) {
  try {
    const File file(path, kImage);
    if (is_picture(file)) read_picture(file, manifest, bundle, to);
    else read_raw(file, manifest, to);
  } catch (const Failure& failure) {
    const bool named = failure.message.find(path) != std::string::npos;
    fail(failure.code, named ? failure.message : path + ": " + failure.message);
  }
}

}  // namespace edgevit

#endif  // EDGEVIT_IMAGE_H_
