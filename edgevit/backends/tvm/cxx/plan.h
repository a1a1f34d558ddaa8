// A plan: which images are run with which effort, a line per run.
#ifndef EDGEVIT_PLAN_H_
#define EDGEVIT_PLAN_H_

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "error.h"
#include "file.h"
#include "number.h"

namespace edgevit {

constexpr int64_t kLargestPlan = 16 << 20;  // bytes
constexpr const char* kBlank = " \t\r\v\f";

struct Step {
  int64_t index;
  float effort;
};

inline std::vector<std::string> split(const std::string& line) {
  std::vector<std::string> words;
  for (size_t at = 0; (at = line.find_first_not_of(kBlank, at)) != std::string::npos;) {
    const size_t end = std::min(line.find_first_of(kBlank, at), line.size());
    words.push_back(line.substr(at, end - at));
    at = end;
  }
  return words;
}

inline std::vector<Step> read_plan(const std::string& path, const File& images, int64_t image_bytes) {
  if (!images.size() || images.size() % image_bytes)
    fail(kImage, images.path() + " has " + std::to_string(images.size()) + " bytes, which are no whole images of " +
                     std::to_string(image_bytes));
  std::vector<Step> steps;
  const std::string plan = File(path, kImage).text(kLargestPlan);
  for (size_t at = 0, end = 0; at < plan.size(); at = end + 1) {
    end = std::min(plan.find('\n', at), plan.size());
    const std::vector<std::string> words = split(plan.substr(at, end - at));
    const std::string index = words.empty() ? "" : words[0], effort = words.size() < 2 ? "" : words[1];
    const auto number = whole_number(index);
    const auto value = real_number(effort);
    if (!number || !value || words.size() > 2)
      fail(kImage, path + " is no plan: line " + std::to_string(steps.size() + 1) +
                       " must be an image's index and an effort, whole numbers from 0 on and a number, inf or -inf");
    if (*number >= images.size() / image_bytes)
      fail(kImage, images.path() + " has no image " + index + ", which line " + std::to_string(steps.size() + 1) + " of " +
                       path + " names; it has " + std::to_string(images.size() / image_bytes));
    steps.push_back({*number, *value});
  }
  if (steps.empty()) fail(kImage, path + " is no plan: it has no line");
  return steps;
}

}  // namespace edgevit

#endif  // EDGEVIT_PLAN_H_
