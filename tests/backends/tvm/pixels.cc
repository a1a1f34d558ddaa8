// The runner's pictures, apart from a model: each line of standard input is a file and how it becomes an input; that is
// written, behind a line with its size in bytes, or `refused` and why.
//
//   PATH HEIGHT WIDTH CROP_PCT INTERPOLATION CROP_MODE ignore|apply R G B       (no blanks in PATH; HEIGHT 0: as it is)
#include <cstdio>
#include <iostream>
#include <sstream>

#include "image.h"

namespace edgevit {

std::string pixels_of(const std::string& path, const Preprocessing& how) {
  const Limits limits;
  const File file(path, kImage);
  const std::string raw = file.text(limits.bytes);
  if (!is_picture(file)) fail(kImage, "no picture");
  Picture picture = decode({reinterpret_cast<const uint8_t*>(raw.data()), raw.size()}, limits, how.upright);
  if (!how.height) return {reinterpret_cast<char*>(picture.pixels), static_cast<size_t>(3 * picture.width * picture.height)};
  std::string made(static_cast<size_t>(3 * how.height * how.width), '\0');
  prepare(std::move(picture), how, limits, reinterpret_cast<uint8_t*>(&made[0]));
  return made;
}

}  // namespace edgevit

int main() {
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream words(line);
    std::string path, orientation;
    edgevit::Preprocessing how{};
    words >> path >> how.height >> how.width >> how.crop_pct >> how.interpolation >> how.crop_mode >> orientation;
    words >> how.mean[0] >> how.mean[1] >> how.mean[2];
    how.upright = orientation == "apply";
    try {
      const std::string made = edgevit::pixels_of(path, how);
      std::printf("%zu\n", made.size());
      std::fwrite(made.data(), 1, made.size(), stdout);
    } catch (const edgevit::Failure& failure) {
      std::printf("refused %s\n", failure.message.c_str());
    }
  }
}
