// What the command line asks for.
#ifndef EDGEVIT_OPTIONS_H_
#define EDGEVIT_OPTIONS_H_

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "manifest.h"
#include "process.h"

namespace edgevit {

struct Options {
  std::string folder, image, plan;
  float effort = 0;
  int64_t runs = 1, top = 5, threads = 0;  // 0: as many as the library was compiled for
  bool trace = false;
};

constexpr const char* kHelp =
    "usage: runner FOLDER IMAGE|- [--effort X] [--runs N] [--plan FILE] [--top K] [--trace] [--threads N] "
    "[--cpus LIST]";

inline int64_t whole(const std::string& name, const char* text) {
  char* end = nullptr;
  const long long value = std::strtoll(text, &end, 10);
  if (end == text || *end || value < 1 || value > 1000000)
    fail(kUsage, name + " must be a whole number from 1 to 1000000, got " + text + "\n" + kHelp);
  return value;
}

inline Options parse(int count, char** arguments) {
  Options options;
  std::vector<std::string> places;
  for (int i = 1; i < count; ++i) {
    const std::string name = arguments[i];
    if (name == "-" || name.compare(0, 2, "--")) {
      places.push_back(name);
      continue;
    }
    if (name == "--trace") {
      options.trace = true;
      continue;
    }
    if (name != "--effort" && name != "--runs" && name != "--top" && name != "--plan" && name != "--cpus" &&
        name != "--threads")
      fail(kUsage, "unknown option " + name + "\n" + kHelp);
    if (++i == count) fail(kUsage, name + " needs a value\n" + kHelp);
    if (name == "--plan") {
      options.plan = arguments[i];
    } else if (name == "--cpus") {
      hold_to(arguments[i]);
    } else if (name == "--effort") {
      char* end = nullptr;
      options.effort = std::strtof(arguments[i], &end);
      if (end == arguments[i] || *end || std::isnan(options.effort))
        fail(kUsage, std::string("--effort must be a number, inf or -inf, got ") + arguments[i] + "\n" + kHelp);
    } else {
      int64_t& number = name == "--runs" ? options.runs : name == "--top" ? options.top : options.threads;
      number = whole(name, arguments[i]);
    }
  }
  if (places.size() != 2) fail(kUsage, kHelp);
  options.folder = places[0];
  options.image = places[1];
  return options;
}

}  // namespace edgevit

#endif  // EDGEVIT_OPTIONS_H_
