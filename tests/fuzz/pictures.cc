// libFuzzer's entry to the C++ runner's pictures: JPEG, PNG and PPM, decoded, turned, resized and cropped, or refused; never
// a fault of memory. The first byte says how the rest, the file, becomes an input.
//
// clang++-19 -std=c++17 -g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -I FOLDERS_OF_THE_RUNNER
#include "image.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const char* const filters[] = {"nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"};
  static const char* const crops[] = {"center", "squash", "border"};
  edgevit::Limits limits;  // small, so that an input takes no time
  limits.pixels = 1 << 14, limits.side = 512, limits.resized = 1 << 16;
  if (!size) return -1;
  edgevit::Preprocessing how{};
  how.height = 8, how.width = *data & 1 ? 8 : 13, how.crop_pct = 0.9, how.mean = {0.5, 0, 1};
  how.interpolation = filters[*data / 2 % 6], how.crop_mode = crops[*data / 12 % 3], how.upright = *data / 36 % 2;
  const std::vector<uint8_t> file(data + 1, data + size);  // one byte more would be told
  std::vector<uint8_t> made(static_cast<size_t>(3 * how.height * how.width));
  const edgevit::Bytes bytes{file.data(), file.size()};
  if (!edgevit::is_jpeg(bytes) && !edgevit::is_png(bytes) && !edgevit::is_ppm(bytes)) return -1;
  try {
    edgevit::prepare(edgevit::decode(bytes, limits, how.upright), how, limits, made.data());
  } catch (const edgevit::Failure& failure) {
    if (failure.code != edgevit::kImage || failure.message.empty()) __builtin_trap();
  }
  return 0;
}
