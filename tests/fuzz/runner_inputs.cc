// libFuzzer's entry to what the C++ runner reads beside model.json: an image, a plan, or its command line, as the first
// byte says. Read or refused, never a fault of memory.
//
// clang++-19 -std=c++17 -g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -I FOLDERS_OF_THE_RUNNER
#define main runner_main
#include "runner.cc"
#undef main

namespace {

constexpr int64_t kSide = 4;

const char* written(const std::string& path, const uint8_t* data, size_t size) {
  std::FILE* file = std::fopen(path.c_str(), "wb");
  if (!file || std::fwrite(data, 1, size, file) != size || std::fclose(file)) __builtin_trap();
  return path.c_str();
}

void read_image(const std::string& path) {
  edgevit::Manifest manifest{};
  manifest.height = manifest.width = kSide;
  std::vector<char> pixels(static_cast<size_t>(manifest.image_bytes()));  // one byte more would be told
  const edgevit::Bundle none(path + ".nothing", manifest);  // so pictures have to be of the model's size
  edgevit::read_image(path, manifest, none, pixels.data());
}

// Every run of a plan takes one of the images.
void read_runs(const std::string& path, const std::string& images) {
  const edgevit::File file(images, edgevit::kImage);
  for (const edgevit::Step& step : edgevit::read_plan(path, file, file.size() / 2))
    if (step.index < 0 || step.index > 1 || std::isnan(step.effort)) __builtin_trap();
}

void read_words(const std::string& text) {  // NUL between them
  std::vector<std::string> words{"runner"};
  for (size_t at = 0; at <= text.size() && words.size() < 64;) {
    const size_t end = std::min(text.find('\0', at), text.size());
    words.push_back(text.substr(at, end - at));
    at = end + 1;
  }
  std::vector<char*> pointers;
  for (std::string& word : words) pointers.push_back(&word[0]);
  const edgevit::Options options = edgevit::parse(static_cast<int>(pointers.size()), pointers.data());
  if (!options.help && (options.runs < 1 || options.top < 1 || std::isnan(options.effort))) __builtin_trap();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::string folder = std::getenv("TMPDIR") ? std::getenv("TMPDIR") : "/tmp";
  static const std::string images = written(folder + "/images", reinterpret_cast<const uint8_t*>("abcdef"), 6);
  if (!size) return -1;
  const char kind = static_cast<char>(*data++);
  --size;
  edgevit::Exit expected = edgevit::kImage;
  try {
    if (kind == 'p') read_image(written(folder + "/image.ppm", data, size));
    else if (kind == 'r') read_image(written(folder + "/image", data, size));
    else if (kind == 'l') read_runs(written(folder + "/plan", data, size), images);
    else if (kind == 'o') expected = edgevit::kUsage, read_words({reinterpret_cast<const char*>(data), size});
    else return -1;
  } catch (const edgevit::Failure& failure) {
    if (failure.code != expected || failure.message.empty()) __builtin_trap();
  }
  return 0;
}
