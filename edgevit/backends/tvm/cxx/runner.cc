// Run one compiled model on one image: the twin of runner.py for a device without Python.
//
//   runner FOLDER IMAGE [--effort X] [--runs N] [--top K] [--threads N]
//   runner FOLDER - [--top K] [--trace]
//   runner FOLDER IMAGES --plan FILE [--top K] [--trace]
//   runner --help
//
// FOLDER holds model.so, model.weights and model.json. IMAGE is raw uint8 RGB, row by row, of exactly the model's size,
// or a binary PPM named *.ppm; it is resized and cropped already. Prints one line of JSON. With - the images come over
// standard input until it ends, each behind its own effort, a float32, and each is answered by a line; --trace adds
// every call inside the run to it: how deep, its name, whose weights it was given (their index, or -1), its time, and in
// the first run, by how many bytes the process had grown after it. With --plan, IMAGES is raw images one behind the
// other, and FILE has a line per run, `INDEX EFFORT`; the first line of the answer tells of loading, and one follows per
// run. --cpus 0,2 holds the process to CPUs; --threads takes fewer threads than the library was compiled for.
//
// What is checked: size and SHA-256 of model.so and model.weights against model.json, and model.json against a digest
// in itself, all before anything is mapped or loaded; and everything else that can be, since loading already executes
// code. This finds damage and files that were exchanged. It does not find somebody who writes all of them anew: whether
// model.json is the one that was built, manifest.json of the bundle tells, which a bundle's receiver has to trust.
//
// Needs nothing but the C library. To compile: g++ -std=c++17 -O2 -static-libstdc++ runner.cc -ldl -o runner
//
// Exit codes: 0 done, 1 a fault inside the model, 2 wrong usage, 15 the image or plan, 16 the answer cannot be written,
// 18 the runtime, 19 the model's files or this machine.
#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <new>
#include <numeric>
#include <optional>
#include <string>
#include <vector>

#include "file.h"
#include "image.h"
#include "library.h"
#include "machine.h"
#include "manifest.h"
#include "memory.h"
#include "number.h"
#include "options.h"
#include "process.h"
#include "threads.h"

namespace edgevit {

constexpr int64_t kLargestPlan = 16 << 20;  // bytes
constexpr const char* kBlank = " \t\r\v\f";

// ---- One process ----

struct Call {  // of a kernel, or of a function of kernels
  int depth, weights;
  std::string name;
  double ms;
  int64_t grown;  // -1: not asked, or not told
};

struct Costs {
  std::vector<Time> times;
  int64_t threads, started, load_peak, grown;
  double load_ms;
  Resident loaded;
  std::vector<Call> calls;
  std::vector<int64_t> heap;  // before loading, at most then, after it, at most since
};

void print_times(const char* name, std::vector<Time> times, double Time::*kind) {
  std::sort(times.begin(), times.end(), [kind](const Time& a, const Time& b) { return a.*kind < b.*kind; });
  std::printf("\"%s\": {\"min\": %.4f, \"median\": %.4f}, ", name, times.front().*kind, times[times.size() / 2].*kind);
}

void print_calls(const std::vector<Call>& calls) {
  std::printf("\"calls\": [");
  for (size_t i = 0; i < calls.size(); ++i) {
    const Call& call = calls[i];
    std::printf("%s[%d, \"%s\", %d, %.6f", i ? ", " : "", call.depth, call.name.c_str(), call.weights, call.ms);
    if (call.grown >= 0) std::printf(", %lld", static_cast<long long>(call.grown));
    std::printf("]");
  }
  std::printf("], ");
}

struct Answer {
  const float* logits;
  const uint8_t* gates;
  const int32_t* tokens;  // patch tokens left after every point where they merge
};

void print(const Options& options, const Manifest& manifest, const Answer& answer, Costs costs) {
  const float* const logits = answer.logits;
  for (int64_t i = 0; i < manifest.classes; ++i)
    if (!std::isfinite(logits[i])) fail(kFault, "the model gave a logit that is not finite, of class " + std::to_string(i));
  std::vector<int64_t> order(manifest.classes);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [logits](int64_t a, int64_t b) { return logits[a] > logits[b]; });
  std::printf("{\"class\": %lld, \"top\": [", static_cast<long long>(order[0]));
  for (int64_t i = 0; i < std::min(options.top, manifest.classes); ++i)
    std::printf("%s[%lld, %.9g]", i ? ", " : "", static_cast<long long>(order[i]), logits[order[i]]);
  std::printf("], \"gates\": [");
  for (int64_t i = 0; i < manifest.branches; ++i) std::printf("%s%d", i ? ", " : "", answer.gates[i]);
  for (int64_t i = 0; i < manifest.points; ++i) std::printf("%s%d", i ? ", " : "], \"tokens\": [", answer.tokens[i]);
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

Manifest checked(const Options& options) {
  Manifest manifest = read_manifest(options.folder + "/model.json");
  check_machine(manifest);
  return manifest;
}

// A loaded model with the memory that it runs in.
class Session {
  std::vector<int64_t> heap_{heap_bytes(kBeginAnew)};
  const Time begun_ = now();

 public:
  const Manifest manifest;

 private:
  const int64_t threads_;
  const File library_;
  const Weights weights_;
  const Buffer image_, memory_, logits_, gates_;

 public:
  char* const image;
  float* const logits;
  uint8_t* const gates;
  float effort = 0;
  int64_t load_peak = 0, started = 0, loaded = 0;
  double load_ms = 0;
  std::vector<Call> calls;

  explicit Session(const Options& options)
      : manifest(checked(options)),
        threads_(count_threads(manifest.threads, options.threads)),
        library_(options.folder + "/model.so", kModel),
        weights_(File(options.folder + "/model.weights", kModel), manifest),
        image_(image_bytes()),
        memory_(manifest.memory),
        logits_(4 * manifest.classes),
        gates_(manifest.branches),
        image(image_.as<char>()),
        logits(logits_.as<float>()),
        gates(gates_.as<uint8_t>()) {
    check_library(library_);
    check_listed(library_, manifest);
    load_ms = now().wall_ms - begun_.wall_ms;
  }
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;
  ~Session() {
    if (model_ && threads_ > 1) api_->start(model_, 1);
  }

  void load(bool trace) {
    started = resident_bytes();
    const Time begin = now();
    api_ = &load_library(library_, manifest);
    check(api_->init(&model_, memory_.as<void>(), manifest.memory, weights_.data(), manifest.weights_bytes()), kModel);
    if (threads_ > 1) check(api_->start(model_, static_cast<int>(threads_)), kRuntime);
    load_ms += now().wall_ms - begin.wall_ms;  // what was checked before is a part of it
    if (trace) api_->listen(model_, [](void* self, int begins, const char* name, int weights) {
      static_cast<Session*>(self)->hear(begins, name, weights);
    }, this);
    load_peak = peak_bytes();
    loaded = resident_bytes();
    if (!emulated()) loaded_ = resident();
    keep_what_is_freed();
    before_ = anonymous_bytes();
    heap_.push_back(heap_bytes(kMost));
    heap_.push_back(heap_bytes(kBeginAnew));
  }

  Time run() {
    calls.clear();
    mark(kBegin);
    const Time begin = now();
    const int status = api_->run(model_, image_.as<uint8_t>(), effort, logits, gates);
    const Time end = now();
    mark(kEnd);
    check(status, kFault);
    fresh_ = false;
    return {end.wall_ms - begin.wall_ms, end.cpu_ms - begin.cpu_ms};
  }

  Costs costs(std::vector<Time> times) const {
    std::vector<int64_t> heap = heap_;
    heap.push_back(heap_bytes(kMost));
    return {std::move(times), threads_, started, load_peak, grown(), load_ms, loaded_, calls, heap};
  }

  int64_t grown() const {  // bytes since loading; -1: not told
    return before_ ? anonymous_bytes() - before_ : -1;
  }

  int64_t image_bytes() const { return manifest.image_bytes(); }

  Answer answer() const { return {logits, gates, manifest.points ? api_->tokens(model_) : nullptr}; }

 private:
  void check(int status, Exit code) const {
    if (status) fail(code, library_.path() + " refuses: " + api_->message(status));
  }

  void hear(int begins, const char* name, int weights) {
    if (begins) {
      open_.push_back(calls.size());
      calls.push_back({static_cast<int>(open_.size()) - 1, weights, name, told_ms(), -1});
      return;
    }
    Call& done = calls[open_.back()];
    done.ms = told_ms() - done.ms;
    if (fresh_) done.grown = grown();  // pages once touched stay, so that only the first run shows it; asking takes time
    open_.pop_back();
  }

  // Of one thread the time that it had a CPU; of several, which wait for each other, the time that went by.
  double told_ms() const { return threads_ == 1 ? now().cpu_ms : now().wall_ms; }

  int64_t before_ = 0;
  bool fresh_ = true;
  Resident loaded_;
  std::vector<size_t> open_;  // calls that have begun and not ended
  const edgevit_library* api_ = nullptr;
  void* model_ = nullptr;
};

void run_one(const Options& options, Session& session) {
  read_pixels(options.image, session.manifest, session.image);
  session.effort = options.effort;
  session.load(options.trace);
  std::vector<Time> times;
  for (int64_t i = 0; i < options.runs; ++i) times.push_back(session.run());
  print(options, session.manifest, session.answer(), session.costs(times));
}

void written() {  // what was printed so far, or it counts for nothing
  if (std::fflush(stdout) || std::ferror(stdout))
    fail(kOutput, std::string("cannot write the answer: ") + std::strerror(errno));
}

void answer(const Options& options, Session& session) {
  const Time time = session.run();
  print(options, session.manifest, session.answer(), session.costs({time}));
  written();
}

void run_stream(const Options& options, Session& session) {
  session.load(options.trace);
  const auto bytes = static_cast<size_t>(session.image_bytes());
  while (const size_t begun = std::fread(&session.effort, 1, sizeof(float), stdin)) {
    if (begun != sizeof(float) || std::fread(session.image, 1, bytes, stdin) != bytes)
      fail(kImage, "standard input ended inside an image of " + std::to_string(bytes) + " bytes");
    if (std::isnan(session.effort)) fail(kImage, "an effort must be a number, got nan");
    answer(options, session);
  }
  if (std::ferror(stdin)) fail(kImage, std::string("cannot read standard input: ") + std::strerror(errno));
}

struct Step {
  int64_t index;
  float effort;
};

std::vector<std::string> split(const std::string& line) {
  std::vector<std::string> words;
  for (size_t at = 0; (at = line.find_first_not_of(kBlank, at)) != std::string::npos;) {
    const size_t end = std::min(line.find_first_of(kBlank, at), line.size());
    words.push_back(line.substr(at, end - at));
    at = end;
  }
  return words;
}

std::vector<Step> read_plan(const std::string& path, const File& images, int64_t image_bytes) {
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

void run_plan(const Options& options, Session& session) {
  const File images(options.image, kImage);
  const std::vector<Step> steps = read_plan(options.plan, images, session.image_bytes());
  session.load(options.trace);
  std::printf("{\"load_ms\": %.4f, \"started_bytes\": %lld, \"loaded_bytes\": %lld}\n", session.load_ms,
              static_cast<long long>(session.started), static_cast<long long>(session.loaded));
  for (const Step& step : steps) {
    images.read(session.image, session.image_bytes(), step.index * session.image_bytes());
    session.effort = step.effort;
    answer(options, session);
  }
}

void run(const Options& options) {
  if (options.help) {
    std::printf("%s\n%s", kUsageLine, kHelp);
    return written();
  }
  if (!options.cpus.empty()) hold_to(options.cpus);
  Session session(options);
  if (!options.plan.empty()) run_plan(options, session);
  else if (options.image == "-") run_stream(options, session);
  else run_one(options, session);
  written();
}

}  // namespace edgevit

int main(int count, char** arguments) {
  try {
    edgevit::run(edgevit::parse(count, arguments));
    return edgevit::kDone;
  } catch (const edgevit::Failure& failure) {
    std::fprintf(stderr, "error: %s\n", failure.message.c_str());
    return failure.code;
  } catch (const std::bad_alloc&) {
    std::fprintf(stderr, "error: no memory\n");
    return edgevit::kRuntime;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return edgevit::kFault;
  }
}
