// A picture in memory, and the bytes of a file that holds one; what is wrong with it is told without its name.
#ifndef EDGEVIT_PICTURE_H_
#define EDGEVIT_PICTURE_H_

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string>
#include <utility>

#include "error.h"

namespace edgevit {

// The most that is taken in; as runner/run.py has it.
struct Limits {
  int64_t bytes = 256 << 20, pixels = 89478485, side = 65535, scans = 32, resized = 1 << 26;
  static constexpr size_t decoding = size_t{768} << 20;
};

struct Bytes {
  const uint8_t* data = nullptr;
  size_t size = 0;

  const uint8_t& operator[](size_t i) const { return data[i]; }
  Bytes part(size_t from, size_t count) const {  // as much of it as there is
    from = from < size ? from : size;
    return {data + from, count < size - from ? count : size - from};
  }
  bool begins(const char* with, size_t count) const { return size >= count && !std::memcmp(data, with, count); }
  // Numbers of 16 and 32 bits; the caller knows that they are there.
  uint32_t big16(size_t at) const { return static_cast<uint32_t>(data[at] << 8 | data[at + 1]); }
  uint32_t big32(size_t at) const { return big16(at) << 16 | big16(at + 2); }
  uint32_t little16(size_t at) const { return static_cast<uint32_t>(data[at + 1] << 8 | data[at]); }
  uint32_t little32(size_t at) const { return little16(at + 2) << 16 | little16(at); }
};

// 8-bit RGB, row by row.
struct Picture {
  int64_t width = 0, height = 0;
  uint8_t* pixels = nullptr;
  int orientation = 1;  // EXIF's, if it was asked for

  Picture() = default;
  Picture(int64_t wide, int64_t high) : width(wide), height(high) {
    pixels = static_cast<uint8_t*>(std::malloc(static_cast<size_t>(3 * wide * high)));
    if (!pixels) throw std::bad_alloc();
  }
  Picture(Picture&& other) noexcept { *this = std::move(other); }
  Picture& operator=(Picture&& other) noexcept {
    std::swap(width, other.width), std::swap(height, other.height), std::swap(pixels, other.pixels);
    orientation = other.orientation;
    return *this;
  }
  ~Picture() { std::free(pixels); }

  uint8_t* at(int64_t x, int64_t y) const { return pixels + 3 * (y * width + x); }
};

inline void check_pixels(int64_t width, int64_t height, const Limits& limits) {
  if (width < 1 || height < 1) fail(kImage, "it has no pixels");
  if (width > limits.side || height > limits.side || width * height > limits.pixels)
    fail(kImage, std::to_string(width) + " x " + std::to_string(height) + " pixels, allowed: " +
                     std::to_string(limits.pixels) + ", " + std::to_string(limits.side) + " a side");
}

}  // namespace edgevit

#endif  // EDGEVIT_PICTURE_H_
