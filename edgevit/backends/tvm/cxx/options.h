// What the command line asks for.
#ifndef EDGEVIT_OPTIONS_H_
#define EDGEVIT_OPTIONS_H_

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "error.h"
#include "number.h"
#include "process.h"

namespace edgevit {

struct Options {
  std::string folder, plan;
  std::vector<std::string> images;  // files, folders, or "-" alone
  std::string point;                // the name of an effort, or empty
  float effort = 0;
  int64_t runs = 1, top = 5, threads = 0;  // 0: as many as the library was compiled for, if there are CPUs for them
  std::vector<int> cpus;                   // none: as it is
  bool trace = false, json = false, help = false;

  bool streamed() const { return images.size() == 1 && images[0] == "-"; }
};

constexpr const char* kUsageLine =
    "usage: runner FOLDER IMAGE... [--effort NAME|X] [--top K] [--json] [--runs N] [--threads N] [--cpus LIST] [--trace]\n"
    "       runner FOLDER - | FOLDER IMAGES --plan FILE    (see --help)";

constexpr const char* kHelp = R"(
Run the model of the bundle in FOLDER on pictures, and print the likeliest classes.

  runner/native/runner . photo.jpg
  runner/native/runner . photos more.png --effort fast --top 3
  runner/native/runner . photos --json > answers.jsonl

  IMAGE         a JPEG, PNG or PPM (P6) file, resized and cropped as the model's training did; a folder: every such file
                below it; or raw uint8 RGB of exactly the model's size (.rgb, .raw)
  --effort X    a number: 0 as calibrated (default), above it more work, below it less; inf opens all gates and merges
                fewest tokens, -inf closes all and merges most; or the name of one of the bundle's operating points
                (fastest, fast, balanced, accurate, full)
  --top K       classes to print (default: 5)
  --json        print a line of JSON per image, with times and memory
  --runs N      run every image N times
  --threads N   threads of a run (default: as many as the library was compiled for, at most one per CPU)
  --cpus LIST   hold the process to these CPUs, numbers with commas between them
  --trace       tell every call inside a run, in JSON

For programs, each run answered by a line of JSON:

  -             raw images over standard input, each behind its effort, a float32
  --plan FILE   IMAGES is raw images one behind the other; FILE has a line `INDEX EFFORT` per run

FOLDER holds model.so, model.weights and model.json, whose size and SHA-256 are checked before they are used, and of a
bundle manifest.json: what pictures, labels and operating points are.

Exit codes: 0 done, 1 a fault inside the model, 2 wrong usage, 15 an image or plan (the others are run), 16 the answer
cannot be written, 18 the runtime, 19 the model's files or this machine.
)";

[[noreturn]] inline void wrong(const std::string& message) { fail(kUsage, message + "\n" + kUsageLine); }

inline int64_t whole(const std::string& name, const std::string& word) {
  const std::optional<int64_t> value = whole_number(word);
  if (!value || *value < 1 || *value > 1000000) wrong(name + " must be a whole number from 1 to 1000000, got " + word);
  return *value;
}

inline bool named(const std::string& word) {  // as an operating point may be
  return word != "nan" && !word.empty() &&
         std::all_of(word.begin(), word.end(), [](char c) { return (c >= 'a' && c <= 'z') || c == '_'; });
}

inline void set_effort(Options& options, const std::string& word) {
  const std::optional<float> value = real_number(word);
  if (!value && !named(word))
    wrong("--effort must be a number, inf or -inf, or the name of an operating point, got " + word);
  options.effort = value.value_or(0);
  options.point = value ? "" : word;
}

inline std::vector<int> numbers(const std::string& name, const std::string& words) {
  std::vector<int> found;
  for (size_t at = 0; at <= words.size();) {
    const size_t end = std::min(words.find(',', at), words.size());
    const std::optional<int64_t> value = whole_number(words.substr(at, end - at));
    if (!value || *value >= CPU_SETSIZE) wrong(name + " must be numbers with commas between them, got " + words);
    found.push_back(static_cast<int>(*value));
    at = end + 1;
  }
  return found;
}

inline void set(Options& options, const std::string& name, const std::string& value) {
  if (name == "--plan") options.plan = value;
  else if (name == "--cpus") options.cpus = numbers(name, value);
  else if (name == "--effort") set_effort(options, value);
  else if (name == "--runs") options.runs = whole(name, value);
  else if (name == "--top") options.top = whole(name, value);
  else options.threads = whole(name, value);
}

inline void check(const Options& options, const std::vector<std::string>& given) {
  const bool planned = !options.plan.empty();
  if (options.folder.empty() || options.images.empty()) wrong("give a folder and an image");
  for (const std::string& image : options.images)
    if (image == "-" && options.images.size() > 1) wrong("- stands alone: it is a stream of images");
  for (const std::string& name : given)
    if ((name == "--runs" || name == "--effort") && (planned || options.streamed()))
      wrong(name + " is for one image; " + (planned ? "a plan" : "the stream") + " says what is run");
  if (planned && (options.streamed() || options.images.size() > 1)) wrong("--plan needs a file of images");
  if (options.trace && !options.json && !planned && !options.streamed()) wrong("--trace is told in JSON; add --json");
}

inline Options parse(int count, char** arguments) {
  Options options;
  std::vector<std::string> given;
  for (int i = 1; i < count; ++i) {
    const std::string name = arguments[i];
    if (name == "--help" || name == "-h") {
      options.help = true;
      return options;
    }
    if (name == "--trace") {
      options.trace = true;
    } else if (name == "--json") {
      options.json = true;
    } else if (name == "--effort" || name == "--runs" || name == "--top" || name == "--plan" || name == "--cpus" ||
               name == "--threads") {
      if (++i == count) wrong(name + " needs a value");
      set(options, name, arguments[i]);
      given.push_back(name);
    } else if (name.compare(0, 2, "--") == 0) {
      wrong("unknown option " + name);
    } else if (options.folder.empty()) {
      options.folder = name;
    } else {
      options.images.push_back(name);
    }
  }
  check(options, given);
  return options;
}

}  // namespace edgevit

#endif  // EDGEVIT_OPTIONS_H_
