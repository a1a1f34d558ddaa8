// How a picture is to be turned: EXIF's tag in a file's metadata, or where that has none, XMP's.
#ifndef EDGEVIT_EXIF_H_
#define EDGEVIT_EXIF_H_

#include <cstdint>
#include <string>
#include <utility>

#include "error.h"
#include "picture.h"

namespace edgevit {

constexpr uint32_t kOrientation = 0x0112;

struct Metadata {
  Bytes exif;       // from the header of its TIFF on
  std::string xmp;  // text
};

inline int exif_orientation(Bytes tiff) {  // 0: it tells none
  const bool little = tiff.begins("II*\0", 4);
  if (tiff.size < 8 || (!little && !tiff.begins("MM\0*", 4))) fail(kImage, "its EXIF data is damaged");
  const auto short_at = [&](size_t at) { return little ? tiff.little16(at) : tiff.big16(at); };
  const auto long_at = [&](size_t at) { return little ? tiff.little32(at) : tiff.big32(at); };
  const size_t first = long_at(4);
  int found = 0;
  if (first > tiff.size - 2) return 0;
  const size_t count = short_at(first);
  for (size_t i = 0, at = first + 2; i < count && at + 12 <= tiff.size; ++i, at += 12) {
    if (short_at(at) != kOrientation || long_at(at + 4) != 1) continue;
    const uint32_t type = short_at(at + 2);
    if (type == 3 || type == 8) found = static_cast<int>(short_at(at + 8));  // 16 bits, without and with a sign
    if (type == 4 || type == 9) found = static_cast<int>(long_at(at + 8) & 0xffff);
  }
  return found;
}

inline int xmp_orientation(const std::string& text) {
  static const std::string name = "tiff:Orientation";
  for (size_t at = 0; (at = text.find(name, at)) != std::string::npos;) {
    at += name.size();
    const size_t value = at + (text.compare(at, 2, "=\"") ? 1 : 2);
    const bool begun = !text.compare(at, 2, "=\"") || !text.compare(at, 1, ">");
    if (begun && value < text.size() && text[value] >= '0' && text[value] <= '9') return text[value] - '0';
  }
  return 0;
}

inline int orientation_of(const Metadata& told) {
  const int exif = told.exif.size ? exif_orientation(told.exif) : 0;
  return exif ? exif : xmp_orientation(told.xmp);
}

// The picture as it is to be looked at; names of the eight ways are EXIF's.
inline Picture upright(Picture picture) {
  const int way = picture.orientation;
  if (way < 2 || way > 8) return picture;
  const bool across = way >= 5;  // rows become columns
  Picture turned(across ? picture.height : picture.width, across ? picture.width : picture.height);
  const bool right = way == 2 || way == 3 || way == 7 || way == 8;  // counted from the right
  const bool down = way == 3 || way == 4 || way == 6 || way == 7;   // and from below
  for (int64_t y = 0; y < turned.height; ++y)
    for (int64_t x = 0; x < turned.width; ++x) {
      const int64_t column = across ? y : x, row = across ? x : y;
      const uint8_t* from = picture.at(right ? picture.width - 1 - column : column, down ? picture.height - 1 - row : row);
      std::memcpy(turned.at(x, y), from, 3);
    }
  return turned;
}

}  // namespace edgevit

#endif  // EDGEVIT_EXIF_H_
