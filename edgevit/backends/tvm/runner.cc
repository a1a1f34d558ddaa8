// Run one compiled model on one image: the twin of runner.py for a device without Python.
//
//   runner FOLDER IMAGE [--effort X] [--runs N] [--top K] [--threads N]
//   runner FOLDER - [--top K] [--trace]
//   runner FOLDER IMAGES --plan FILE [--top K] [--trace]
//
// FOLDER holds model.so, model.weights and model.json. IMAGE is raw uint8 RGB, row by row, of exactly the model's size,
// or a binary PPM named *.ppm; it is resized and cropped already. Prints one line of JSON. With - the images come over
// standard input until it ends, each behind its own effort, a float32, and each is answered by a line; --trace adds
// every call inside the run to it: how deep, its name, whose weights it was given (their index, or -1), its time, and in
// the first run, by how many bytes the process had grown after it. With --plan, IMAGES is raw images one behind the
// other, and FILE has a line per run, `INDEX EFFORT`; the first line of the answer tells of loading, and one follows per
// run. --cpus 0,2 holds the process to CPUs; --threads takes fewer threads than the library was compiled for. Needs the headers of tvm_ffi, libtvm_runtime.so and libtvm_ffi.so, nothing
// else. Everything that can be checked is checked before the library is loaded, since loading already executes code
// from it.
//
// To compile: g++ -std=c++17 -O2 -DEDGEVIT_TVM='"VERSION"' -isystem TVM_FFI/include runner.cc libtvm_runtime.so
// libtvm_ffi.so -o runner
//
// Exit codes: 0 done, 1 a fault inside the model, 2 wrong usage, 15 the image, 18 the runtime, 19 the model's files or
// this machine.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <numeric>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "image.h"
#include "machine.h"
#include "manifest.h"
#include "options.h"
#include "process.h"
#include "threads.h"

namespace edgevit {

namespace ffi = tvm::ffi;

constexpr int kAllocator = 1;  // Never asked for anything: the model allocates nothing.

// ---- Tensors ----

struct Borrowed {  // A tensor over memory that outlives it.
  void AllocData(DLTensor* tensor, const void* data) { tensor->data = const_cast<void*>(data); }
  void FreeData(DLTensor*) {}
};

ffi::Tensor tensor(const void* data, std::vector<int64_t> shape, DLDataTypeCode code, int bits) {
  if (reinterpret_cast<uintptr_t>(data) % kAlign) fail(kFault, "data is not aligned to 64 bytes");
  const DLDataType kind{static_cast<uint8_t>(code), static_cast<uint8_t>(bits), 1};
  return ffi::Tensor::FromNDAlloc(Borrowed(), ffi::ShapeView(shape.data(), shape.size()), kind, DLDevice{kDLCPU, 0},
                                  data);
}

void* allocate(int64_t bytes) {
  const size_t size = (static_cast<size_t>(bytes) + kAlign) / kAlign * kAlign;
  void* data = std::aligned_alloc(kAlign, size);
  if (!data) fail(kRuntime, "no memory for " + std::to_string(bytes) + " bytes");
  return data;
}

const char* map_weights(const std::string& path, const Manifest& manifest) {
  const int64_t expected =
      manifest.weights.empty() ? 0 : manifest.weights.back().offset + 4 * manifest.weights.back().elements;
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  struct stat status {};
  if (file < 0 || fstat(file, &status))
    fail(kModel, "cannot read the weights " + path + ": " + std::strerror(errno) + "; unpack the bundle again");
  if (status.st_size != expected)
    fail(kModel, path + " has " + std::to_string(status.st_size) + " bytes, the manifest says " +
                     std::to_string(expected) + "; unpack the bundle again");
  if (!expected) return nullptr;
  void* mapped = mmap(nullptr, expected, PROT_READ, MAP_PRIVATE, file, 0);
  close(file);
  if (mapped == MAP_FAILED) fail(kModel, "cannot map " + path + ": " + std::strerror(errno));
  return static_cast<const char*>(mapped);
}

// ---- One process ----

struct Model {
  ffi::Module library, machine;
  ffi::Function main;
};

Model load_model(const std::string& path) {
  try {
    ffi::Module library = ffi::Module::LoadFromFile(path);
    ffi::Module machine = library->GetFunction("vm_load_executable", true).value()().cast<ffi::Module>();
    machine->GetFunction("vm_initialization", false).value()(static_cast<int>(kDLCPU), 0, kAllocator);
    ffi::Function main = machine->GetFunction("main", false).value();
    return Model{library, machine, main};
  } catch (const std::exception& error) {
    fail(kModel, "TVM " EDGEVIT_TVM " cannot load " + path + ": " + error.what() + "; unpack the bundle again");
  }
}

struct Call {  // of a kernel, or of a function of kernels
  int depth, weights;
  std::string name;
  double ms;
  int64_t grown;  // -1: not asked, or not told
};

struct Costs {
  std::vector<Time> times;
  int64_t started, load_peak, grown;
  double load_ms;
  Resident loaded;
  std::vector<Call> calls;
  std::vector<int64_t> heap;  // before loading, at most then, after it, at most since
};

void print_times(const char* name, std::vector<Time> times, double Time::*kind) {
  std::sort(times.begin(), times.end(), [kind](const Time& a, const Time& b) { return a.*kind < b.*kind; });
  std::printf("\"%s\": {\"min\": %.4f, \"median\": %.4f}, ", name, times.front().*kind, times[times.size() / 2].*kind);
}

void print(const Options& options, const Manifest& manifest, const float* logits, const uint8_t* gates, Costs costs) {
  for (int64_t i = 0; i < manifest.classes; ++i)
    if (!std::isfinite(logits[i])) fail(kFault, "the model gave a logit that is not finite, of class " + std::to_string(i));
  std::vector<int64_t> order(manifest.classes);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [logits](int64_t a, int64_t b) { return logits[a] > logits[b]; });
  std::printf("{\"class\": %lld, \"top\": [", static_cast<long long>(order[0]));
  for (int64_t i = 0; i < std::min(options.top, manifest.classes); ++i)
    std::printf("%s[%lld, %.9g]", i ? ", " : "", static_cast<long long>(order[i]), logits[order[i]]);
  std::printf("], \"gates\": [");
  for (int64_t i = 0; i < manifest.branches; ++i) std::printf("%s%d", i ? ", " : "", gates[i]);
  std::printf("], \"runs\": %zu, ", costs.times.size());
  if (options.trace) {
    std::printf("\"calls\": [");
    for (size_t i = 0; i < costs.calls.size(); ++i) {
      const Call& call = costs.calls[i];
      std::printf("%s[%d, \"%s\", %d, %.6f", i ? ", " : "", call.depth, call.name.c_str(), call.weights, call.ms);
      if (call.grown >= 0) std::printf(", %lld", static_cast<long long>(call.grown));
      std::printf("]");
    }
    std::printf("], ");
  }
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

// A loaded model with the memory that it runs in.
class Session {
 public:
  explicit Session(const Options& options) : manifest(read_manifest(options.folder + "/model.json")) {
    heap_ = {heap_bytes(kBeginAnew)};
    const std::string library = options.folder + "/model.so";
    check_machine(manifest);
    check_library(library);
    threads_ = options.threads ? options.threads : manifest.threads;
    if (threads_ > manifest.threads)
      fail(kUsage, "the kernels are shared out among " + std::to_string(manifest.threads) + ", got --threads " +
                       std::to_string(threads_) + "; give fewer, or build for a target with more");
    const char* weights = map_weights(options.folder + "/model.weights", manifest);
    image = static_cast<char*>(allocate(image_bytes()));
    effort = static_cast<float*>(allocate(sizeof(float)));
    void* arena = allocate(4 * manifest.arena);
    logits = static_cast<float*>(allocate(4 * manifest.classes));
    gates = static_cast<uint8_t*>(allocate(manifest.branches));
    tensors_ = {tensor(image, {1, manifest.height, manifest.width, 3}, kDLUInt, 8), tensor(effort, {}, kDLFloat, 32),
                tensor(arena, {manifest.arena}, kDLFloat, 32), tensor(logits, {1, manifest.classes}, kDLFloat, 32),
                tensor(gates, {manifest.branches}, kDLUInt, 8)};
    for (const Parameter& p : manifest.weights) {
      places_[weights + p.offset] = static_cast<int>(places_.size());
      tensors_.push_back(tensor(weights + p.offset, {p.elements}, kDLFloat, 32));
    }
    library_ = library;
  }

  void load(bool trace) {
    started = resident_bytes();
    const Time begin = now();
    if (manifest.threads > 1) use_threads(threads_);
    model_.emplace(load_model(library_));
    load_ms = now().wall_ms - begin.wall_ms;
    for (const ffi::Tensor& t : tensors_) arguments_.emplace_back(t);
    if (trace) watch();
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
    ffi::Any result;
    mark(kBegin);
    const Time begin = now();
    model_->main.CallPacked(arguments_.data(), static_cast<int32_t>(arguments_.size()), &result);
    const Time end = now();
    mark(kEnd);
    fresh_ = false;
    return {end.wall_ms - begin.wall_ms, end.cpu_ms - begin.cpu_ms};
  }

  Costs costs(std::vector<Time> times) const {
    std::vector<int64_t> heap = heap_;
    heap.push_back(heap_bytes(kMost));
    return {std::move(times), started, load_peak, grown(), load_ms, loaded_, calls, heap};
  }

  int64_t grown() const {  // bytes since loading; -1: not told
    return before_ ? anonymous_bytes() - before_ : -1;
  }

  int64_t image_bytes() const { return 3 * manifest.height * manifest.width; }

  const Manifest manifest;
  char* image;
  float *effort, *logits;
  uint8_t* gates;
  int64_t load_peak = 0, started = 0, loaded = 0;
  double load_ms = 0;
  std::vector<Call> calls;

 private:
  // The virtual machine tells every call before and after it: (function, its name, before, result, arguments...).
  void watch() {
    auto told = [this](ffi::PackedArgs args, ffi::Any*) {
      if (!args[2].cast<bool>()) {
        Call& done = calls[open_.back()];
        done.ms = told_ms() - done.ms;
        // What a process allocates and touches it keeps, so that only the first run shows it; asking takes its time.
        if (fresh_ && done.name.compare(0, 3, "vm.")) done.grown = grown();
        open_.pop_back();
        return;
      }
      Call begun{static_cast<int>(open_.size()), -1, args[1].cast<std::string>(), told_ms(), -1};
      for (int i = 4; i < args.size() && begun.weights < 0; ++i) {
        const auto given = args[i].try_cast<ffi::Tensor>();
        const bool none = !given || !given->defined();  // a None is a tensor too
        const auto found = none ? places_.end() : places_.find(given->data_ptr());
        if (found != places_.end()) begun.weights = found->second;
      }
      open_.push_back(calls.size());
      calls.push_back(begun);
    };
    model_->machine->GetFunction("set_instrument", false).value()(ffi::Function::FromPacked(told));
  }

  // Of one thread the time that it had a CPU; of several, which wait for each other, the time that went by.
  double told_ms() const { return threads_ == 1 ? now().cpu_ms : now().wall_ms; }

  std::string library_;
  int64_t before_ = 0, threads_ = 1;
  bool fresh_ = true;
  Resident loaded_;
  std::vector<int64_t> heap_;
  std::map<const void*, int> places_;  // of the weights, to their index in the manifest
  std::vector<size_t> open_;           // calls that have begun and not ended
  std::vector<ffi::Tensor> tensors_;
  std::vector<ffi::AnyView> arguments_;
  std::optional<Model> model_;
};

void run_one(const Options& options, Session& session) {
  const std::string picture = pixels(options.image, session.manifest);
  std::memcpy(session.image, picture.data(), picture.size());
  *session.effort = options.effort;
  session.load(options.trace);
  std::vector<Time> times;
  for (int64_t i = 0; i < options.runs; ++i) times.push_back(session.run());
  print(options, session.manifest, session.logits, session.gates, session.costs(times));
}

void answer(const Options& options, Session& session) {
  const Time time = session.run();
  print(options, session.manifest, session.logits, session.gates, session.costs({time}));
}

void run_stream(const Options& options, Session& session) {
  session.load(options.trace);
  const size_t bytes = session.image_bytes();
  while (const size_t begun = std::fread(session.effort, 1, sizeof(float), stdin)) {
    if (begun != sizeof(float) || std::fread(session.image, 1, bytes, stdin) != bytes)
      fail(kImage, "standard input ended inside an image of " + std::to_string(bytes) + " bytes");
    if (std::isnan(*session.effort)) fail(kImage, "an effort must be a number, got nan");
    answer(options, session);
    std::fflush(stdout);
  }
}

void run_plan(const Options& options, Session& session) {
  std::istringstream plan(read_file(options.plan, kImage));
  std::ifstream images(options.image, std::ios::binary);
  session.load(options.trace);
  std::printf("{\"load_ms\": %.4f, \"started_bytes\": %lld, \"loaded_bytes\": %lld}\n", session.load_ms,
              static_cast<long long>(session.started), static_cast<long long>(session.loaded));
  for (std::string line; std::getline(plan, line);) {
    int64_t index;
    if (!(std::istringstream(line) >> index >> *session.effort))
      fail(kImage, options.plan + " is no plan: a line per run, with an image's index and an effort");
    images.seekg(index * session.image_bytes());
    if (!images.read(session.image, session.image_bytes()))
      fail(kImage, options.image + " has no image " + std::to_string(index));
    answer(options, session);
  }
}

void run(const Options& options) {
  Session session(options);
  if (!options.plan.empty()) return run_plan(options, session);
  options.image == "-" ? run_stream(options, session) : run_one(options, session);
}

}  // namespace edgevit

int main(int count, char** arguments) {
  try {
    edgevit::run(edgevit::parse(count, arguments));
    return edgevit::kDone;
  } catch (const edgevit::Failure& failure) {
    std::fprintf(stderr, "error: %s\n", failure.message.c_str());
    return failure.code;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return edgevit::kFault;
  }
}
