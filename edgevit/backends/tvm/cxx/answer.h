// What is printed of a run: a line of JSON for programs that send many, or what somebody wants to know of a picture.
#ifndef EDGEVIT_ANSWER_H_
#define EDGEVIT_ANSWER_H_

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include "bundle.h"
#include "manifest.h"
#include "options.h"
#include "process.h"
#include "session.h"
#include "text.h"

namespace edgevit {

inline void written() {  // what was printed so far, or it counts for nothing
  if (std::fflush(stdout) || std::ferror(stdout))
    fail(kOutput, std::string("cannot write the answer: ") + std::strerror(errno));
}

inline std::vector<int64_t> ranked(const float* logits, int64_t classes) {
  for (int64_t i = 0; i < classes; ++i)
    if (!std::isfinite(logits[i])) fail(kFault, "the model gave a logit that is not finite, of class " + std::to_string(i));
  std::vector<int64_t> order(static_cast<size_t>(classes));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [logits](int64_t a, int64_t b) { return logits[a] > logits[b]; });
  return order;
}

// Values as `format` prints them, with commas between.
template <typename T>
void print_list(const char* format, const T* values, int64_t count) {
  for (int64_t i = 0; i < count; ++i) std::printf(i ? ", " : ""), std::printf(format, values[i]);
}

inline void print_times(const char* name, std::vector<Time> times, double Time::*kind) {
  std::sort(times.begin(), times.end(), [kind](const Time& a, const Time& b) { return a.*kind < b.*kind; });
  std::printf("\"%s\": {\"min\": %.4f, \"median\": %.4f}, ", name, times.front().*kind, times[times.size() / 2].*kind);
}

inline void print_calls(const std::vector<Call>& calls) {
  std::printf("\"calls\": [");
  for (size_t i = 0; i < calls.size(); ++i) {
    const Call& call = calls[i];
    std::printf("%s[%d, \"%s\", %d, %.6f", i ? ", " : "", call.depth, call.name.c_str(), call.weights, call.ms);
    if (call.grown >= 0) std::printf(", %lld", static_cast<long long>(call.grown));
    std::printf("]");
  }
  std::printf("], ");
}

// Branches, tokens, time and memory, to the end of the line.
inline void print_costs(const Options& options, const Manifest& manifest, const Answer& answer, const Costs& costs) {
  std::printf("\"gates\": [");
  print_list("%d", answer.gates, manifest.branches);
  if (manifest.points) std::printf("], \"tokens\": [");
  print_list("%d", answer.tokens, manifest.points);
  std::printf("], \"runs\": %zu, \"threads\": %lld, ", costs.times.size(), static_cast<long long>(costs.threads));
  if (options.trace) print_calls(costs.calls);
  for (size_t i = 0; accountant() && i < costs.heap.size(); ++i)
    std::printf("%s%lld%s", i ? ", " : "\"heap_bytes\": [", static_cast<long long>(costs.heap[i]),
                i + 1 < costs.heap.size() ? "" : "], ");
  if (emulated()) {  // Time and memory would be the emulator's.
    std::printf("\"emulated\": true}\n");
    return;
  }
  std::printf("\"emulated\": false, ");
  print_times("cpu_ms", costs.times, &Time::cpu_ms);
  print_times("wall_ms", costs.times, &Time::wall_ms);
  const Resident& at = costs.loaded;
  std::printf(
      "\"loaded\": {\"weights\": %lld, \"model\": %lld, \"runtime\": %lld, \"system\": %lld, \"own\": %lld}, ",
      static_cast<long long>(at.weights), static_cast<long long>(at.model), static_cast<long long>(at.runtime),
      static_cast<long long>(at.system), static_cast<long long>(at.own));
  std::printf("\"load_ms\": %.4f, \"started_bytes\": %lld, ", costs.load_ms, static_cast<long long>(costs.started));
  std::printf(
      "\"load_peak_bytes\": %lld, \"peak_bytes\": %lld, \"grown_bytes\": %lld, \"resident_bytes\": %lld}\n",
      static_cast<long long>(costs.load_peak), static_cast<long long>(peak_bytes()),
      static_cast<long long>(costs.grown), static_cast<long long>(resident_bytes()));
}

// A line of numbers, as programs take it that start this one and send it images.
inline void print_line(const Options& options, const Manifest& manifest, const Answer& answer, const Costs& costs) {
  const std::vector<int64_t> order = ranked(answer.logits, manifest.classes);
  std::printf("{\"class\": %lld, \"top\": [", static_cast<long long>(order[0]));
  for (int64_t i = 0; i < std::min(options.top, manifest.classes); ++i)
    std::printf("%s[%lld, %.9g]", i ? ", " : "", static_cast<long long>(order[i]), static_cast<double>(answer.logits[order[i]]));
  std::printf("], ");
  print_costs(options, manifest, answer, costs);
}

struct Class {
  int64_t index;
  double score, probability;
  std::string label;
};

inline std::vector<Class> best_classes(int64_t count, const Manifest& manifest, const Bundle& bundle, const float* logits) {
  std::vector<int64_t> order = ranked(logits, manifest.classes);
  double sum = 0;
  for (int64_t i = 0; i < manifest.classes; ++i) sum += std::exp(static_cast<double>(logits[i]) - logits[order[0]]);
  const float most = logits[order[0]];
  order.resize(static_cast<size_t>(std::min(count, manifest.classes)));
  const std::vector<std::string> labels = bundle.labelled() ? bundle.labels(order) : std::vector<std::string>(order.size());
  std::vector<Class> found;
  for (size_t i = 0; i < order.size(); ++i) {
    const double score = logits[order[i]];
    found.push_back({order[i], score, std::exp(score - most) / sum, labels[i]});
  }
  return found;
}

// The same object as runner/run.py prints, and what the run cost behind it.
inline void print_json(const Options& options, const std::string& path, const Manifest& manifest, const Bundle& bundle,
                       const Answer& answer, const Costs& costs) {
  std::printf("{\"image\": %s, ", in_json(path).c_str());
  if (bundle.features) {
    std::printf("\"features\": [");
    print_list("%.9g", answer.logits, manifest.classes);
    std::printf("], ");
  } else {
    const char* between = "\"top\": [";
    for (const Class& each : best_classes(options.top, manifest, bundle, answer.logits)) {
      std::printf("%s{\"class\": %lld, \"label\": %s, \"score\": %.9g, ", between, static_cast<long long>(each.index),
                  bundle.labelled() ? in_json(each.label).c_str() : "null", each.score);
      if (manifest.classes > 1) std::printf("\"probability\": %.9g}", each.probability);
      else std::printf("\"probability\": null}");  // one class alone has none
      between = ", ";
    }
    std::printf("], ");
  }
  if (!emulated()) std::printf("\"milliseconds\": %.4f, ", costs.times.back().wall_ms);
  print_costs(options, manifest, answer, costs);
}

inline void print_text(const Options& options, const std::string& path, const Manifest& manifest, const Bundle& bundle,
                       const Answer& answer, const Costs& costs) {
  std::string gates;
  for (int64_t i = 0; i < manifest.branches; ++i) gates += answer.gates[i] ? 'x' : '.';
  const auto ran = static_cast<long long>(std::count(gates.begin(), gates.end(), 'x'));
  std::printf("%s  ", shown(path).c_str());
  if (!emulated()) std::printf("%.1f ms  ", costs.times.back().wall_ms);
  std::printf("%lld of %lld branches ran\n", ran, static_cast<long long>(manifest.branches));
  if (bundle.features) {
    double sum = 0;
    for (int64_t i = 0; i < manifest.classes; ++i) sum += static_cast<double>(answer.logits[i]) * answer.logits[i];
    std::printf("  %lld features, no classes, length %.4g; --json prints them\n", static_cast<long long>(manifest.classes),
                std::sqrt(sum));
  } else {
    for (const Class& each : best_classes(options.top, manifest, bundle, answer.logits)) {
      if (manifest.classes > 1) std::printf("  %5.1f%%", 100 * each.probability);
      else std::printf("  %8.3f", each.score);
      std::printf("  %4lld  %s\n", static_cast<long long>(each.index), shown(each.label).c_str());
    }
  }
  std::printf("  gates [%s]  x = ran, . = skipped, in the order of the manifest's branches\n", gates.c_str());
  if (!manifest.points) return;
  std::printf("  tokens ");
  print_list("%d", answer.tokens, manifest.points);
  std::printf("  patch tokens left after each point where they merge\n");
}

}  // namespace edgevit

#endif  // EDGEVIT_ANSWER_H_
