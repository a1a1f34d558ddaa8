// A model with the memory that it runs in, and what its runs cost.
#ifndef EDGEVIT_SESSION_H_
#define EDGEVIT_SESSION_H_

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "error.h"
#include "file.h"
#include "library.h"
#include "machine.h"
#include "manifest.h"
#include "memory.h"
#include "options.h"
#include "process.h"
#include "threads.h"

namespace edgevit {

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

struct Answer {
  const float* logits;
  const uint8_t* gates;
  const int32_t* tokens;  // patch tokens left after every point where they merge
};

inline Manifest checked(const Options& options) {
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
    check_listed(library_, manifest.files);
    load_ms = now().wall_ms - begun_.wall_ms;
  }
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;
  ~Session() {
    if (model_ && threads_ > 1) api_->start(model_, 1);
  }

  // `kept` keeps what is freed, so that memory taken for a moment still shows at the end.
  void load(bool trace, bool kept) {
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
    if (kept) keep_what_is_freed();
    before_ = anonymous_bytes();
    heap_.push_back(heap_bytes(kMost));
    heap_.push_back(heap_bytes(kBeginAnew));
    pages_.find();
    pages_.let_go();
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

  void let_go() const { pages_.let_go(); }

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
  UnwrittenPages pages_;
  Resident loaded_;
  std::vector<size_t> open_;  // calls that have begun and not ended
  const edgevit_library* api_ = nullptr;
  void* model_ = nullptr;
};

}  // namespace edgevit

#endif  // EDGEVIT_SESSION_H_
