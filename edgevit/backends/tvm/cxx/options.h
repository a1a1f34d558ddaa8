// What the command line asks for.
#ifndef EDGEVIT_OPTIONS_H_
#define EDGEVIT_OPTIONS_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "error.h"
#include "number.h"
#include "process.h"

namespace edgevit {

struct Options {
  std::string folder, image, plan;
  float effort = 0;
  int64_t runs = 1, top = 5, threads = 0;  // 0: as many as the library was compiled for, if there are CPUs for them
  std::vector<int> cpus;                   // none: as it is
  bool trace = false, help = false;
};

constexpr const char* kUsageLine =
    "usage: runner FOLDER IMAGE|- [--effort X] [--runs N] [--plan FILE] [--top K] [--trace] [--threads N] "
    "[--cpus LIST] [--help]";

constexpr const char* kHelp = R"(
Run the compiled model in FOLDER (model.so, model.weights, model.json), and print a line of JSON per run.

  IMAGE         raw uint8 RGB of exactly the model's size, or a binary PPM named *.ppm
  -             images over standard input, each behind its effort, a float32
  --effort X    added to every gate logit: 0 as calibrated (default), inf opens all gates, -inf closes all
  --runs N      run the image N times
  --plan FILE   IMAGE is images one behind the other; FILE has a line `INDEX EFFORT` per run
  --top K       classes to print (default: 5)
  --trace       tell every call inside a run
  --threads N   threads of a run (default: as many as the library was compiled for, at most one per CPU)
  --cpus LIST   hold the process to these CPUs, numbers with commas between them

Size and SHA-256 of every file in FOLDER are checked before it is used.

Exit codes: 0 done, 1 a fault inside the model, 2 wrong usage, 15 the image or plan, 16 the answer cannot be written,
18 the runtime, 19 the model's files or this machine.
)";

[[noreturn]] inline void wrong(const std::string& message) { fail(kUsage, message + "\n" + kUsageLine); }

inline int64_t whole(const std::string& name, const std::string& word) {
  const std::optional<int64_t> value = whole_number(word);
  if (!value || *value < 1 || *value > 1000000) wrong(name + " must be a whole number from 1 to 1000000, got " + word);
  return *value;
}

inline float real(const std::string& name, const std::string& word) {
  const std::optional<float> value = real_number(word);
  if (!value) wrong(name + " must be a number, inf or -inf, got " + word);
  return *value;
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
  else if (name == "--effort") options.effort = real(name, value);
  else if (name == "--runs") options.runs = whole(name, value);
  else if (name == "--top") options.top = whole(name, value);
  else options.threads = whole(name, value);
}

inline Options parse(int count, char** arguments) {
  Options options;
  std::vector<std::string> places, given;
  for (int i = 1; i < count; ++i) {
    const std::string name = arguments[i];
    if (name == "--help" || name == "-h") {
      options.help = true;
      return options;
    }
    if (name == "--trace") {
      options.trace = true;
    } else if (name == "--effort" || name == "--runs" || name == "--top" || name == "--plan" || name == "--cpus" ||
               name == "--threads") {
      if (++i == count) wrong(name + " needs a value");
      set(options, name, arguments[i]);
      given.push_back(name);
    } else if (name.compare(0, 2, "--") == 0) {
      wrong("unknown option " + name);
    } else {
      places.push_back(name);
    }
  }
  if (places.size() != 2) wrong("give a folder and an image");
  options.folder = places[0];
  options.image = places[1];
  const bool planned = !options.plan.empty();
  for (const std::string& name : given)
    if ((name == "--runs" || name == "--effort") && (planned || options.image == "-"))
      wrong(name + " is for one image; " + (planned ? "a plan" : "the stream") + " says what is run");
  if (planned && options.image == "-") wrong("--plan needs a file of images");
  return options;
}

}  // namespace edgevit

#endif  // EDGEVIT_OPTIONS_H_
