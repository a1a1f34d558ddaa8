// What a PNG file says before it is decoded. Every chunk is held against its CRC, and the decoder is given only those
// that make pixels, with a palette that has a colour for every number.
#ifndef EDGEVIT_PNG_H_
#define EDGEVIT_PNG_H_

#include <array>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "error.h"
#include "exif.h"
#include "picture.h"

namespace edgevit {

constexpr size_t kPalette = 768;  // bytes
#ifdef FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION
constexpr bool kChecked = false;  // so that a fuzzer comes past the CRC
#else
constexpr bool kChecked = true;
#endif

struct Png {
  int64_t width = 0, height = 0;
  int bits = 0;
  bool grey = false;
  Metadata told;
  std::vector<Bytes> parts;  // what is decoded, one behind the other
  std::array<uint8_t, 12 + kPalette> palette{};
};

inline uint32_t crc32(Bytes bytes) {
  static const auto table = [] {
    std::array<uint32_t, 256> made{};
    for (uint32_t i = 0; i < 256; ++i) {
      made[i] = i;
      for (int bit = 0; bit < 8; ++bit) made[i] = made[i] & 1 ? 0xedb88320u ^ made[i] >> 1 : made[i] >> 1;
    }
    return made;
  }();
  uint32_t crc = ~0u;
  for (size_t i = 0; i < bytes.size; ++i) crc = table[(crc ^ bytes[i]) & 255] ^ crc >> 8;
  return ~crc;
}

inline void read_header(Png& png, Bytes data, const Limits& limits) {
  if (data.size != 13) fail(kImage, "a damaged PNG file: its header is of another size");
  png.width = data.big32(0), png.height = data.big32(4);
  png.bits = data[8], png.grey = data[9] == 0;
  check_pixels(png.width, png.height, limits);
}

inline void read_palette(Png& png, Bytes data) {
  if (data.size % 3 || data.size > kPalette) fail(kImage, "a damaged PNG file: its palette is of another size");
  const uint8_t head[] = {0, 0, kPalette >> 8, kPalette & 255, 'P', 'L', 'T', 'E'};
  std::memcpy(png.palette.data(), head, sizeof head);
  std::memcpy(png.palette.data() + sizeof head, data.data, data.size);
  png.parts.push_back({png.palette.data(), png.palette.size()});
}

// Metadata that a picture may be turned by; kept as text behind a zip it is refused where it would count.
inline void read_metadata(Png& png, const std::string& name, Bytes data) {
  static const std::string profile("Raw profile type exif\0", 22), xmp("XML:com.adobe.xmp\0", 18);
  if (name == "eXIf") png.told.exif = data;
  if (data.begins(profile.data(), profile.size()) && !png.told.exif.size)
    fail(kImage, "its EXIF data is kept as text, which this program does not read; save the picture again");
  if (name != "iTXt" || !data.begins(xmp.data(), xmp.size())) return;
  // Behind the name: whether it is compressed, how, and a language and a translated name that end in zeros.
  size_t at = xmp.size() + 2;
  if (data.size > xmp.size() && data[xmp.size()])
    fail(kImage, "its XMP data is compressed, which this program does not read; save the picture again");
  for (int texts = 0; texts < 2; ++texts) {
    while (at < data.size && data[at]) ++at;
    ++at;
  }
  const Bytes text = data.part(at, data.size);
  png.told.xmp.assign(reinterpret_cast<const char*>(text.data), text.size);
}

// `png` is where it goes, and stays as long as its parts are used.
inline void read_png(Bytes file, const Limits& limits, bool metadata, Png& png) {
  png.parts.push_back(file.part(0, 8));  // what every PNG begins with
  bool pixels = false, ended = false;
  for (size_t at = 8; !ended;) {
    if (file.size - at < 12) fail(kImage, "the PNG file is cut short");
    const size_t size = file.big32(at);
    if (size > file.size - at - 12) fail(kImage, "the PNG file is cut short");
    const std::string name(reinterpret_cast<const char*>(file.data) + at + 4, 4);
    const Bytes data = file.part(at + 8, size);
    if (kChecked && crc32(file.part(at + 4, size + 4)) != file.big32(at + 8 + size))
      fail(kImage, "a damaged PNG file: a part of it has another CRC");
    if (png.width ? name == "IHDR" : name != "IHDR") fail(kImage, "a damaged PNG file: its header is not its beginning");
    if (name == "IHDR") read_header(png, data, limits);
    if (name == "PLTE") read_palette(png, data);
    else if (name == "IHDR" || name == "IDAT" || name == "tRNS" || name == "IEND")
      png.parts.push_back(file.part(at, size + 12));
    else if (!(name[0] & 0x20))
      fail(kImage, "the PNG file has a part that this program does not know, but needs");
    else if (metadata)
      read_metadata(png, name, data);
    pixels |= name == "IDAT", ended = name == "IEND";
    at += size + 12;
  }
  if (!pixels) fail(kImage, "a damaged PNG file: it has no pixels");
}

}  // namespace edgevit

#endif  // EDGEVIT_PNG_H_
