// What a JPEG file says before it is decoded.
#ifndef EDGEVIT_JPEG_H_
#define EDGEVIT_JPEG_H_

#include <cstdint>
#include <cstring>
#include <string>

#include "error.h"
#include "exif.h"
#include "picture.h"

namespace edgevit {

struct Jpeg {
  int64_t width = 0, height = 0;
  int components = 0;
  bool adobe = false;
  Metadata told;
};

inline void read_segment(Jpeg& jpeg, int marker, Bytes data, const Limits& limits) {
  static const char exif[] = "Exif\0", xmp[] = "http://ns.adobe.com/xap/1.0/";  // with the zero that ends each
  const bool frame = marker >= 0xc0 && marker <= 0xcf && marker != 0xc4 && marker != 0xc8 && marker != 0xcc;
  if (frame && data.size >= 6) {
    if (data[0] != 8) fail(kImage, "a JPEG file of " + std::to_string(data[0]) + " bits; this program reads 8");
    jpeg.height = data.big16(1), jpeg.width = data.big16(3), jpeg.components = data[5];
    check_pixels(jpeg.width, jpeg.height, limits);
  }
  if (marker == 0xee && data.begins("Adobe", 5)) jpeg.adobe = true;
  if (marker == 0xe1 && data.begins(exif, sizeof exif) && !jpeg.told.exif.size)
    jpeg.told.exif = data.part(sizeof exif, data.size);
  if (marker == 0xe1 && data.begins(xmp, sizeof xmp))
    jpeg.told.xmp.assign(reinterpret_cast<const char*>(data.data) + sizeof xmp, data.size - sizeof xmp);
}

inline Jpeg read_jpeg(Bytes file, const Limits& limits) {
  Jpeg jpeg;
  int64_t scans = 0;
  for (size_t at = 0; at + 1 < file.size; ++at) scans += file[at] == 0xff && file[at + 1] == 0xda;
  if (scans > limits.scans) fail(kImage, std::to_string(scans) + " scans, allowed: " + std::to_string(limits.scans));
  for (size_t at = 2; at + 4 <= file.size;) {
    if (file[at] != 0xff) fail(kImage, "a damaged JPEG file");
    const int marker = file[at + 1];
    if (marker == 0xff) {  // fills up
      ++at;
      continue;
    }
    if (marker == 0xda || marker == 0xd9) break;  // pixels, or the end
    const size_t size = file.big16(at + 2);
    if (size < 2 || size > file.size - at - 2) fail(kImage, "the JPEG file is cut short");
    read_segment(jpeg, marker, file.part(at + 4, size - 2), limits);
    at += 2 + size;
  }
  if (!jpeg.width) fail(kImage, "a damaged JPEG file: it does not say how large it is");
  if (jpeg.components == 4 && !jpeg.adobe) fail(kImage, "a CMYK JPEG file that does not say which inks it means");
  return jpeg;
}

}  // namespace edgevit

#endif  // EDGEVIT_JPEG_H_
