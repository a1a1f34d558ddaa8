// libFuzzer's entry to the C++ runner's reader of model.json: parsed or refused, never a fault of memory.
//
// clang++-19 -std=c++17 -g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -I FOLDER_OF_THE_RUNNER
#include "manifest.h"

namespace {

using edgevit::Json;

// The text with a digest in its `sha256` that fits, as whoever changes a model on purpose would write it.
std::string sealed(std::string text) {
  const Json data = edgevit::JsonReader("model.json", text).read();
  for (size_t i = 0; i < data.keys.size(); ++i) {
    const std::string& digest = data.items[i].text;
    if (data.keys[i] != "sha256" || digest.size() != 64) continue;
    const size_t at = text.find(digest);
    std::string blank = text;
    blank.erase(at, digest.size());
    edgevit::Sha256 hash;
    hash.add(blank.data(), blank.size());
    return text.replace(at, digest.size(), hash.hex());
  }
  return text;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size > static_cast<size_t>(edgevit::kLargestManifest)) return -1;
  const std::string text(reinterpret_cast<const char*>(data), size);
  try {
    const edgevit::Manifest manifest = edgevit::parse_manifest("model.json", sealed(text));
    // What the runner computes of it before it opens another file; sums and products must not overflow.
    volatile int64_t used = manifest.image_bytes();
    used = manifest.weights_bytes();
    static_cast<void>(used);
  } catch (const edgevit::Failure& failure) {
    if (failure.code != edgevit::kModel || failure.message.empty()) __builtin_trap();
  }
  return 0;
}
