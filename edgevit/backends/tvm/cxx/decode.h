// JPEG, PNG and PPM files to pixels, by stb_image, which is given nothing before its header was looked at. Where it rounds
// JPEG files otherwise than libjpeg, this does it instead: pixels are those that the model's training read.
#ifndef EDGEVIT_DECODE_H_
#define EDGEVIT_DECODE_H_

#include <malloc.h>

#include <algorithm>
#include <cctype>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "error.h"
#include "jpeg.h"
#include "picture.h"
#include "png.h"

namespace edgevit {

// What a decoder holds at a time; runner/run.py is limited as a process.
struct DecoderMemory {
  size_t held = 0;
  bool refused = false;
};

inline DecoderMemory& decoder() {
  static DecoderMemory used;
  return used;
}

inline void* decoder_memory(void* old, size_t size) {
  DecoderMemory& used = decoder();
  const size_t before = old ? malloc_usable_size(old) : 0, others = used.held - std::min(before, used.held);
  if (size > Limits::decoding - std::min(others, Limits::decoding)) {
    used.refused = true;
    return nullptr;
  }
  void* const found = std::realloc(old, size);
  if (found) used.held = others + malloc_usable_size(found);
  return found;
}

inline void decoder_release(void* held) {
  if (held) decoder().held -= std::min(malloc_usable_size(held), decoder().held);
  std::free(held);
}

}  // namespace edgevit

#define STB_IMAGE_IMPLEMENTATION
#define STB_IMAGE_STATIC
#define STBI_ONLY_JPEG
#define STBI_ONLY_PNG
#define STBI_NO_STDIO
#define STBI_NO_LINEAR
#define STBI_NO_HDR
#define STBI_NO_THREAD_LOCALS
#define STBI_FAILURE_USERMSG
#define STBI_MAX_DIMENSIONS 65535
#define STBI_ASSERT(held) static_cast<void>(held)
// A small file may ask for any memory: a picture of many pixels and deep colours, a stream that unpacks without end.
#define STBI_MALLOC(size) edgevit::decoder_memory(nullptr, size)
#define STBI_REALLOC(old, size) edgevit::decoder_memory(old, size)
#define STBI_FREE(held) edgevit::decoder_release(held)
// Its function for colours of half the width is set aside, by its parameters, for one that rounds as libjpeg does.
#define stbi__resample_row_h_2(...) stbi__resample_row_h_2_aside(__VA_ARGS__)
static unsigned char*(stbi__resample_row_h_2)(unsigned char*, unsigned char*, unsigned char*, int, int);
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"
#pragma GCC diagnostic ignored "-Wunused-but-set-variable"
#pragma GCC diagnostic ignored "-Wunused-parameter"
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"
#pragma GCC diagnostic ignored "-Wsign-compare"
#include "stb_image.h"
#pragma GCC diagnostic pop
#undef stbi__resample_row_h_2

static unsigned char* stbi__resample_row_h_2(unsigned char* out, unsigned char* in, unsigned char*, int width, int) {
  for (int i = 0; i < width; ++i) {
    out[2 * i] = static_cast<unsigned char>(i ? (3 * in[i] + in[i - 1] + 1) >> 2 : in[i]);
    out[2 * i + 1] = static_cast<unsigned char>(i + 1 < width ? (3 * in[i] + in[i + 1] + 2) >> 2 : in[i]);
  }
  return out;
}

namespace edgevit {

// Parts one behind the other, as the decoder reads them; it would take what is missing for zeros.
struct Fed {
  std::vector<Bytes> parts;
  size_t part = 0, at = 0;
  bool beyond = false;  // more was asked for than there is

  static int read(void* self, char* to, int count) {
    auto& fed = *static_cast<Fed*>(self);
    int got = 0;
    for (; got < count && fed.part < fed.parts.size(); ++fed.part, fed.at = 0) {
      const Bytes left = fed.parts[fed.part].part(fed.at, static_cast<size_t>(count - got));
      if (to && left.size) std::memcpy(to + got, left.data, left.size);
      got += static_cast<int>(left.size), fed.at += left.size;
      if (fed.at < fed.parts[fed.part].size) break;
    }
    fed.beyond |= count > 0 && !got;
    return got;
  }
  static void skip(void* self, int count) { read(self, nullptr, count); }
  static int eof(void* self) {
    const auto& fed = *static_cast<Fed*>(self);
    return fed.part == fed.parts.size();
  }
};

constexpr stbi_io_callbacks kFed = {Fed::read, Fed::skip, Fed::eof};

inline void check_decoded(const void* found, const Fed& fed, int64_t width, int64_t height, const Picture& picture) {
  const char* why = stbi_failure_reason();
  if (decoder().refused)
    fail(kImage, "decoding it needs more memory than allowed: " + std::to_string(Limits::decoding) + " bytes");
  if (!found && !fed.beyond) fail(kImage, std::string("it cannot be decoded (") + (why ? why : "no reason told") + ")");
  if (fed.beyond) fail(kImage, "the file is cut short");
  if (width != picture.width || height != picture.height) fail(kImage, "it tells two sizes of itself");
}

inline Picture decoded(Fed fed, int64_t width, int64_t height) {
  Picture picture;
  int wide = 0, high = 0, channels = 0;
  picture.pixels = stbi_load_from_callbacks(&kFed, &fed, &wide, &high, &channels, 3);
  picture.width = wide, picture.height = high;
  check_decoded(picture.pixels, fed, width, height, picture);
  return picture;
}

// Eight values of a cosine transform back to samples, times 2^13: the exact integers of libjpeg's slow method, by the
// factorisation of Loeffler, Ligtenberg and Moschytz.
inline void cosines(const int64_t in[8], int64_t out[8]) {
  const int64_t z = (in[2] + in[6]) * 4433, even2 = z - in[6] * 15137, even3 = z + in[2] * 6270;
  const int64_t sum = (in[0] + in[4]) * 8192, difference = (in[0] - in[4]) * 8192;
  const int64_t even[4] = {sum + even3, difference + even2, difference - even2, sum - even3};
  const int64_t z5 = (in[7] + in[3] + in[5] + in[1]) * 9633;
  const int64_t z1 = (in[7] + in[1]) * -7373, z2 = (in[5] + in[3]) * -20995;
  const int64_t z3 = (in[7] + in[3]) * -16069 + z5, z4 = (in[5] + in[1]) * -3196 + z5;
  const int64_t odd[4] = {in[1] * 12299 + z1 + z4, in[3] * 25172 + z2 + z3, in[5] * 16819 + z2 + z4, in[7] * 2446 + z1 + z3};
  for (int i = 0; i < 4; ++i) out[i] = even[i] + odd[i], out[7 - i] = even[i] - odd[i];
}

// A block of 8 x 8 values, columns first.
inline void jpeg_block(stbi_uc* out, int stride, short* data) {
  int64_t in[8], made[8], between[8][8];
  for (int x = 0; x < 8; ++x) {
    for (int y = 0; y < 8; ++y) in[y] = data[8 * y + x];
    cosines(in, made);
    for (int y = 0; y < 8; ++y) between[y][x] = (made[y] + (1 << 10)) >> 11;
  }
  for (int y = 0; y < 8; ++y, out += stride) {
    cosines(between[y], made);
    for (int x = 0; x < 8; ++x)
      out[x] = static_cast<stbi_uc>(std::min<int64_t>(std::max<int64_t>(((made[x] + (1 << 17)) >> 18) + 128, 0), 255));
  }
}

// Colours of a JPEG file as libjpeg makes them: sums in fixed point of 16 bits.
inline void jpeg_colours(stbi_uc* out, const stbi_uc* y, const stbi_uc* blue, const stbi_uc* red, int count, int step) {
  const auto clip = [](int value) { return static_cast<stbi_uc>(std::min(std::max(value, 0), 255)); };
  for (int i = 0; i < count; ++i, out += step) {
    const int b = blue[i] - 128, r = red[i] - 128;
    out[0] = clip(y[i] + ((91881 * r + 32768) >> 16));
    out[1] = clip(y[i] + ((-22554 * b - 46802 * r + 32768) >> 16));
    out[2] = clip(y[i] + ((116130 * b + 32768) >> 16));
  }
}

// A row of colours of half the width and height, a quarter of the way to the next row; roundings alternate as libjpeg's do.
inline stbi_uc* jpeg_row(stbi_uc* out, stbi_uc* near, stbi_uc* far, int width, int) {
  const auto sum = [&](int i) { return 3 * near[i] + far[i]; };
  for (int i = 0; i < width; ++i) {
    const int here = sum(i), before = i ? sum(i - 1) : here, behind = i + 1 < width ? sum(i + 1) : here;
    out[2 * i] = static_cast<stbi_uc>((3 * here + before + 8) >> 4);
    out[2 * i + 1] = static_cast<stbi_uc>((3 * here + behind + 7) >> 4);
  }
  return out;
}

inline Picture decoded_jpeg(Fed fed, int64_t width, int64_t height) {
  Picture picture;
  int wide = 0, high = 0, channels = 0;
  stbi__context context;
  stbi__start_callbacks(&context, const_cast<stbi_io_callbacks*>(&kFed), &fed);
  const std::unique_ptr<stbi__jpeg, decltype(&std::free)> jpeg(
      static_cast<stbi__jpeg*>(std::calloc(1, sizeof(stbi__jpeg))), std::free);
  if (!jpeg) throw std::bad_alloc();
  jpeg->s = &context;
  stbi__setup_jpeg(jpeg.get());
  jpeg->idct_block_kernel = jpeg_block;
  jpeg->YCbCr_to_RGB_kernel = jpeg_colours;
  jpeg->resample_row_hv_2_kernel = jpeg_row;
  picture.pixels = load_jpeg_image(jpeg.get(), &wide, &high, &channels, 3);
  picture.width = wide, picture.height = high;
  check_decoded(picture.pixels, fed, width, height, picture);
  return picture;
}

// Grey of 16 bits becomes 8 by its share of the largest value; colours take their upper byte, as Pillow does.
inline Picture decoded_grey16(Fed fed, int64_t width, int64_t height) {
  Picture deep;
  int wide = 0, high = 0, channels = 0;
  stbi_us* const values = stbi_load_16_from_callbacks(&kFed, &fed, &wide, &high, &channels, 1);
  deep.pixels = reinterpret_cast<uint8_t*>(values), deep.width = wide, deep.height = high;
  check_decoded(values, fed, width, height, deep);
  Picture picture(width, height);
  for (int64_t i = 0; i < width * height; ++i)
    std::memset(picture.pixels + 3 * i, (values[i] * 255 + 32767) / 65535, 3);
  return picture;
}

inline bool is_jpeg(Bytes file) { return file.begins("\xff\xd8\xff", 3); }
inline bool is_png(Bytes file) { return file.begins("\x89PNG\r\n\x1a\n", 8); }
inline bool is_ppm(Bytes file) { return file.size > 2 && file.begins("P6", 2) && std::isspace(file[2]); }

inline int64_t ppm_number(Bytes file, size_t& at) {
  while (at < file.size && (std::isspace(file[at]) || file[at] == '#')) {
    if (file[at] != '#') ++at;
    else while (at < file.size && file[at] != '\n') ++at;
  }
  int64_t value = -1;
  for (; at < file.size && file[at] >= '0' && file[at] <= '9' && value < 1 << 20; ++at)
    value = 10 * std::max<int64_t>(value, 0) + (file[at] - '0');
  if (value < 0) fail(kImage, "a damaged PPM file");
  return value;
}

inline Picture decode_ppm(Bytes file, const Limits& limits) {
  constexpr size_t kHeader = 4096;  // bytes, comments included
  size_t at = 2;
  const Bytes head = file.part(0, kHeader);
  const int64_t width = ppm_number(head, at), height = ppm_number(head, at), most = ppm_number(head, at);
  if (most != 255) fail(kImage, "values up to " + std::to_string(most) + "; this program reads PPM of 8 bits, 255");
  if (at >= head.size || !std::isspace(head[at])) fail(kImage, "a damaged PPM file");
  check_pixels(width, height, limits);
  const auto expected = static_cast<size_t>(3 * width * height);
  if (file.size - at - 1 < expected)
    fail(kImage, "the file is cut short: " + std::to_string(expected) + " bytes behind the header are a PPM of its size");
  Picture picture(width, height);
  std::memcpy(picture.pixels, file.data + at + 1, expected);
  return picture;
}

// `oriented` asks for the EXIF orientation too.
inline Picture decode(Bytes file, const Limits& limits, bool oriented) {
  decoder() = {};
  if (is_jpeg(file)) {
    const Jpeg jpeg = read_jpeg(file, limits);
    Picture picture = decoded_jpeg({{file}}, jpeg.width, jpeg.height);
    if (oriented) picture.orientation = orientation_of(jpeg.told);
    return picture;
  }
  if (is_png(file)) {
    Png png;
    read_png(file, limits, oriented, png);
    const bool deep = png.grey && png.bits == 16;
    Picture picture = deep ? decoded_grey16({png.parts}, png.width, png.height) : decoded({png.parts}, png.width, png.height);
    if (oriented) picture.orientation = orientation_of(png.told);
    return picture;
  }
  return decode_ppm(file, limits);
}

}  // namespace edgevit

#endif  // EDGEVIT_DECODE_H_
