// Run one compiled model on one image: the twin of runner.py for a device without Python.
//
//   runner FOLDER IMAGE [--effort X] [--runs N] [--top K]
//   runner FOLDER - [--top K]
//
// FOLDER holds model.so, model.weights and model.json. IMAGE is raw uint8 RGB, row by row, of exactly the model's size,
// or a binary PPM named *.ppm; it is resized and cropped already. Prints one line of JSON. With - the images come over
// standard input until it ends, each behind its own effort, a float32, and each is answered by a line. Needs the headers of tvm_ffi,
// libtvm_runtime.so and libtvm_ffi.so, nothing else. Everything that can be checked is checked before the library is
// loaded, since loading already executes code from it.
//
// Exit codes: 0 done, 1 a fault inside the model, 2 wrong usage, 15 the image, 18 the runtime, 19 the model's files or
// this machine.
#include <elf.h>
#include <fcntl.h>
#include <malloc.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/module.h>
#include <unistd.h>
#if defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>
#include <numeric>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#ifndef EDGEVIT_TVM
#error "define EDGEVIT_TVM as the version of apache-tvm whose runtime library is linked"
#endif

namespace {

namespace ffi = tvm::ffi;

enum Exit { kDone = 0, kFault = 1, kUsage = 2, kImage = 15, kRuntime = 18, kModel = 19 };

struct Failure {
  Exit code;
  std::string message;
};

[[noreturn]] void fail(Exit code, const std::string& message) { throw Failure{code, message}; }

constexpr int64_t kSchema = 1;
constexpr size_t kAlign = 64;                  // The runtime crashes on data that is not aligned, and does not say why.
constexpr int64_t kLargest = int64_t{1} << 40; // No size in a manifest is larger: products of three of them are checked.
constexpr int kAllocator = 1;                  // Never asked for anything: the model allocates nothing.

std::string read_file(const std::string& path, Exit code) {
  std::ifstream file(path, std::ios::binary);
  std::string content{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (!file || (content.empty() && file.bad())) fail(code, "cannot read " + path + ": " + std::strerror(errno));
  return content;
}

// ---- model.json: objects, lists, strings without escapes, whole numbers ----

struct Json {
  enum Kind { kNumber, kText, kList, kMap } kind = kNumber;
  int64_t number = 0;
  std::string text;
  std::vector<std::string> keys;  // of a map, beside `items`
  std::vector<Json> items;
};

class JsonReader {
 public:
  JsonReader(std::string path, std::string text) : path_(std::move(path)), text_(std::move(text)) {}

  Json read() {
    Json value = read_value(0);
    if (skip() != '\0' || at_ != text_.size()) bad("more after its end");
    return value;
  }

 private:
  [[noreturn]] void bad(const std::string& what) const {
    fail(kModel, path_ + " is not what edgevit writes: " + what + " at byte " + std::to_string(at_) +
                     "; unpack the bundle again");
  }

  char skip() {
    while (at_ < text_.size() && std::strchr(" \t\r\n", text_[at_]) && text_[at_]) ++at_;
    return at_ < text_.size() ? text_[at_] : '\0';
  }

  void expect(char wanted) {
    if (skip() != wanted) bad(std::string("no '") + wanted + "'");
    ++at_;
  }

  bool another(char close) {
    if (skip() == ',') return ++at_, true;
    expect(close);
    return false;
  }

  Json read_value(int depth) {
    if (depth > 3) bad("too deep a nesting");
    Json value;
    const char first = skip();
    if (first == '"') {
      value.kind = Json::kText;
      value.text = read_text();
    } else if (first == '{' || first == '[') {
      const bool map = first == '{';
      value.kind = map ? Json::kMap : Json::kList;
      const char close = map ? '}' : ']';
      ++at_;
      if (skip() == close) return ++at_, value;
      do {
        if (map) read_key(value.keys);
        value.items.push_back(read_value(depth + 1));
      } while (another(close));
    } else {
      value.number = read_number();
    }
    return value;
  }

  void read_key(std::vector<std::string>& keys) {
    if (skip() != '"') bad("no name");
    std::string key = read_text();
    if (std::find(keys.begin(), keys.end(), key) != keys.end()) bad(key + " twice");
    keys.push_back(std::move(key));
    expect(':');
  }

  std::string read_text() {
    const size_t start = ++at_;
    while (at_ < text_.size() && text_[at_] != '"') {
      if (text_[at_] == '\\' || static_cast<unsigned char>(text_[at_]) < 0x20) bad("an escape or a control character");
      ++at_;
    }
    if (at_ == text_.size()) bad("a string without an end");
    return text_.substr(start, at_++ - start);
  }

  int64_t read_number() {
    const size_t start = at_;
    int64_t value = 0;
    for (; at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9'; ++at_) {
      value = 10 * value + (text_[at_] - '0');
      if (value > kLargest) bad("too large a number");
    }
    if (at_ == start || (text_[start] == '0' && at_ > start + 1)) bad("no whole number");
    return value;
  }

  std::string path_, text_;
  size_t at_ = 0;
};

// ---- The manifest, as runner.py defines it ----

struct Parameter {
  int64_t offset, elements;
};

struct Manifest {
  std::string tvm;
  std::vector<std::string> machines, flags;
  int64_t height, width, classes, branches, arena;
  std::vector<Parameter> weights;
};

class Fields {
 public:
  Fields(std::string path, const Json& map, std::vector<std::string> names) : path_(std::move(path)), map_(map) {
    if (map.kind != Json::kMap) bad("is not an object");
    for (const std::string& key : map.keys)
      if (std::find(names.begin(), names.end(), key) == names.end()) bad("has an unknown field " + key);
    for (const std::string& name : names) get(name);
  }

  const Json& get(const std::string& name) const {
    const auto found = std::find(map_.keys.begin(), map_.keys.end(), name);
    if (found == map_.keys.end()) bad("has no field " + name);
    return map_.items[found - map_.keys.begin()];
  }

  const Json& get(const std::string& name, Json::Kind kind) const {
    const Json& value = get(name);
    if (value.kind != kind) bad("has a field " + name + " of another type");
    return value;
  }

  int64_t number(const std::string& name, int64_t least) const {
    const int64_t value = get(name, Json::kNumber).number;
    if (value < least) bad("has " + name + " = " + std::to_string(value));
    return value;
  }

  std::vector<std::string> texts(const std::string& name) const {
    std::vector<std::string> found;
    for (const Json& item : get(name, Json::kList).items) {
      if (item.kind != Json::kText) bad("has a field " + name + " of another type");
      found.push_back(item.text);
    }
    return found;
  }

 private:
  [[noreturn]] void bad(const std::string& what) const { fail(kModel, path_ + " " + what + "; build again"); }

  std::string path_;
  const Json& map_;
};

Manifest read_manifest(const std::string& path) {
  const Json data = JsonReader(path, read_file(path, kModel)).read();
  for (size_t i = 0; i < data.keys.size(); ++i)
    if (data.keys[i] == "schema" && data.items[i].number != kSchema)
      fail(kModel, path + " has schema " + std::to_string(data.items[i].number) + ", this runner reads " +
                       std::to_string(kSchema) + "; build again");
  const Fields fields(path, data,
                      {"schema", "tvm", "isa", "machines", "flags", "height", "width", "classes", "branches", "arena",
                       "weights"});
  fields.get("isa", Json::kText);
  Manifest found{fields.get("tvm", Json::kText).text,
                 fields.texts("machines"),
                 fields.texts("flags"),
                 fields.number("height", 1),
                 fields.number("width", 1),
                 fields.number("classes", 1),
                 fields.number("branches", 0),
                 fields.number("arena", 1),
                 {}};
  if (found.height > 1 << 16 || found.width > 1 << 16) fail(kModel, path + " has too large an image; build again");
  int64_t end = 0;
  for (const Json& item : fields.get("weights", Json::kList).items) {
    const Fields part(path + ", weights", item, {"name", "offset_bytes", "elements"});
    part.get("name", Json::kText);
    const Parameter parameter{part.number("offset_bytes", 0), part.number("elements", 1)};
    if (parameter.offset != end || parameter.offset % kAlign)
      fail(kModel, path + " has weights that do not follow each other at 64 bytes; build again");
    end = parameter.offset + 4 * parameter.elements;
    found.weights.push_back(parameter);
  }
  return found;
}

// ---- What must hold before code of the library may run ----

#if defined(__x86_64__)
constexpr const char* kMachine = "x86_64";
constexpr int kElfMachine = EM_X86_64;

std::vector<std::pair<std::string, bool>> cpu_flags() {  // Names as in /proc/cpuinfo; the operating system's part too.
  __builtin_cpu_init();
#define EDGEVIT_FLAG(name, gcc) {name, __builtin_cpu_supports(gcc) != 0}
  return {EDGEVIT_FLAG("avx2", "avx2"),         EDGEVIT_FLAG("fma", "fma"),
          EDGEVIT_FLAG("bmi1", "bmi"),          EDGEVIT_FLAG("bmi2", "bmi2"),
          EDGEVIT_FLAG("f16c", "f16c"),         EDGEVIT_FLAG("abm", "lzcnt"),
          EDGEVIT_FLAG("movbe", "movbe"),       EDGEVIT_FLAG("avx_vnni", "avxvnni"),
          EDGEVIT_FLAG("avx512f", "avx512f"),   EDGEVIT_FLAG("avx512bw", "avx512bw"),
          EDGEVIT_FLAG("avx512cd", "avx512cd"), EDGEVIT_FLAG("avx512dq", "avx512dq"),
          EDGEVIT_FLAG("avx512vl", "avx512vl"), EDGEVIT_FLAG("avx512_vnni", "avx512vnni")};
#undef EDGEVIT_FLAG
}
#elif defined(__aarch64__)
constexpr const char* kMachine = "aarch64";
constexpr int kElfMachine = EM_AARCH64;

std::vector<std::pair<std::string, bool>> cpu_flags() {  // Names as in /proc/cpuinfo.
  const unsigned long first = getauxval(AT_HWCAP), second = getauxval(AT_HWCAP2);
  return {{"asimd", first & HWCAP_ASIMD},       {"atomics", first & HWCAP_ATOMICS},
          {"fphp", first & HWCAP_FPHP},         {"asimdhp", first & HWCAP_ASIMDHP},
          {"asimdrdm", first & HWCAP_ASIMDRDM}, {"lrcpc", first & HWCAP_LRCPC},
          {"asimddp", first & HWCAP_ASIMDDP},   {"i8mm", second & HWCAP2_I8MM}};
}
#else
#error "there are kernels for x86-64 and aarch64 only"
#endif

std::string joined(const std::vector<std::string>& words, const char* between) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : between) + word;
  return text;
}

void check_machine(const Manifest& manifest) {
  const auto& machines = manifest.machines;
  if (std::find(machines.begin(), machines.end(), kMachine) == machines.end())
    fail(kModel, "this library is for " + joined(machines, " or ") + ", this runner is for " + kMachine);
  const auto known = cpu_flags();
  std::vector<std::string> lacking;
  for (const std::string& flag : manifest.flags)
    if (std::find(known.begin(), known.end(), std::make_pair(flag, true)) == known.end()) lacking.push_back(flag);
  if (!lacking.empty())
    fail(kModel,
         "this library needs a CPU with " + joined(lacking, " ") + "; build for a target that this CPU can run");
  if (manifest.tvm != EDGEVIT_TVM)
    fail(kModel, "this library was compiled by apache-tvm " + manifest.tvm +
                     " and runs with no other; this runner is for " EDGEVIT_TVM "; build again");
  TVMFFIVersion linked;
  TVMFFIGetVersion(&linked);
  if (linked.major != TVM_FFI_VERSION_MAJOR || linked.minor != TVM_FFI_VERSION_MINOR ||
      linked.patch != TVM_FFI_VERSION_PATCH)
    fail(kRuntime, "libtvm_ffi.so is not the one that this runner was compiled with; copy the runner's folder again");
}

void check_library(const std::string& path) {
  Elf64_Ehdr header{};
  std::ifstream file(path, std::ios::binary);
  if (!file) fail(kModel, "cannot read " + path + ": " + std::strerror(errno) + "; unpack the bundle again");
  file.read(reinterpret_cast<char*>(&header), sizeof(header));
  if (!file || std::memcmp(header.e_ident, ELFMAG, SELFMAG) || header.e_type != ET_DYN)
    fail(kModel, path + " is not a shared library; unpack the bundle again");
  if (header.e_ident[EI_CLASS] != ELFCLASS64 || header.e_machine != kElfMachine)
    fail(kModel, path + " is for another architecture (ELF machine " + std::to_string(header.e_machine) +
                     "), this runner is for " + kMachine);
}

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

// ---- The image ----

int64_t ppm_number(const std::string& path, const std::string& data, size_t& at) {
  while (at < data.size() && (std::isspace(static_cast<unsigned char>(data[at])) || data[at] == '#')) {
    if (data[at] == '#') at = std::min(data.find('\n', at), data.size());
    else ++at;
  }
  int64_t value = -1;
  for (; at < data.size() && data[at] >= '0' && data[at] <= '9' && value < 1 << 20; ++at)
    value = 10 * std::max<int64_t>(value, 0) + (data[at] - '0');
  if (value < 0) fail(kImage, path + " is a damaged PPM file");
  return value;
}

std::string pixels(const std::string& path, const Manifest& manifest) {
  const std::string data = read_file(path, kImage);
  const std::string size = std::to_string(manifest.width) + " x " + std::to_string(manifest.height);
  const size_t expected = static_cast<size_t>(manifest.height) * manifest.width * 3;
  size_t start = 0;
  if (path.size() > 4 && path.compare(path.size() - 4, 4, ".ppm") == 0) {
    if (data.compare(0, 2, "P6")) fail(kImage, path + " is not a binary PPM file (P6)");
    start = 2;
    const int64_t width = ppm_number(path, data, start), height = ppm_number(path, data, start);
    const int64_t most = ppm_number(path, data, start);
    if (width != manifest.width || height != manifest.height)
      fail(kImage, "the model takes an image of " + size + ", " + path + " is " + std::to_string(width) + " x " +
                       std::to_string(height) + "; resize and crop as the manifest's preprocessing says");
    if (most != 255) fail(kImage, path + " has values up to " + std::to_string(most) + "; the model takes 8 bits, 255");
    ++start;
  }
  if (data.size() - std::min(start, data.size()) != expected)
    fail(kImage, path + " has " + std::to_string(data.size()) + " bytes; the model takes uint8 RGB, " + size + ": " +
                     std::to_string(expected) + " bytes" +
                     (start ? " behind the header" : data.size() == 4 * expected ? " (is this float32?)" : ""));
  return data.substr(start);
}

// ---- One process ----

struct Options {
  std::string folder, image;
  float effort = 0;
  int64_t runs = 1, top = 5;
};

constexpr const char* kHelp = "usage: runner FOLDER IMAGE|- [--effort X] [--runs N] [--top K]";

int64_t whole(const std::string& name, const char* text) {
  char* end = nullptr;
  const long long value = std::strtoll(text, &end, 10);
  if (end == text || *end || value < 1 || value > 1000000)
    fail(kUsage, name + " must be a whole number from 1 to 1000000, got " + text + "\n" + kHelp);
  return value;
}

Options parse(int count, char** arguments) {
  Options options;
  std::vector<std::string> places;
  for (int i = 1; i < count; ++i) {
    const std::string name = arguments[i];
    if (name == "-" || name.compare(0, 2, "--")) {
      places.push_back(name);
      continue;
    }
    if (name != "--effort" && name != "--runs" && name != "--top")
      fail(kUsage, "unknown option " + name + "\n" + kHelp);
    if (++i == count) fail(kUsage, name + " needs a value\n" + kHelp);
    if (name == "--effort") {
      char* end = nullptr;
      options.effort = std::strtof(arguments[i], &end);
      if (end == arguments[i] || *end || std::isnan(options.effort))
        fail(kUsage, std::string("--effort must be a number, inf or -inf, got ") + arguments[i] + "\n" + kHelp);
    } else {
      (name == "--runs" ? options.runs : options.top) = whole(name, arguments[i]);
    }
  }
  if (places.size() != 2) fail(kUsage, kHelp);
  options.folder = places[0];
  options.image = places[1];
  return options;
}

bool emulated() {  // qemu fakes /proc/self/exe, but not this one.
  char path[4096];
  const ssize_t length = readlink("/proc/thread-self/exe", path, sizeof(path));
  return length > 0 && std::string(path, length).find("qemu") != std::string::npos;
}

int64_t told_bytes(const char* path, const std::string& field) {  // 0 where the system does not tell it
  std::ifstream status(path);
  for (std::string line; std::getline(status, line);)
    if (!line.compare(0, field.size(), field)) return 1024 * std::atoll(line.c_str() + field.size());
  return 0;
}

int64_t peak_bytes() { return told_bytes("/proc/self/status", "VmHWM:"); }

// Memory of this process that is in no file: what it allocated and touched.
int64_t anonymous_bytes() { return told_bytes("/proc/self/smaps_rollup", "Anonymous:"); }

void keep_what_is_freed() {  // so that memory taken for a moment still shows at the end
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, std::numeric_limits<int>::max());
}

double cpu_ms() {
  timespec now{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return now.tv_sec * 1e3 + now.tv_nsec * 1e-6;
}

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

struct Costs {
  std::vector<double> times;
  int64_t load_peak, grown;
};

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
  if (emulated()) {  // Time and memory would be the emulator's.
    std::printf("\"emulated\": true}\n");
    return;
  }
  std::vector<double>& times = costs.times;
  std::sort(times.begin(), times.end());
  std::printf(
      "\"emulated\": false, \"cpu_ms\": {\"min\": %.3f, \"median\": %.3f}, \"load_peak_bytes\": %lld, "
      "\"peak_bytes\": %lld, \"grown_bytes\": %lld}\n",
      times.front(), times[times.size() / 2], static_cast<long long>(costs.load_peak),
      static_cast<long long>(peak_bytes()), static_cast<long long>(costs.grown));
}

// A loaded model with the memory that it runs in.
class Session {
 public:
  explicit Session(const Options& options) : manifest(read_manifest(options.folder + "/model.json")) {
    const std::string library = options.folder + "/model.so";
    check_machine(manifest);
    check_library(library);
    const char* weights = map_weights(options.folder + "/model.weights", manifest);
    image = static_cast<char*>(allocate(image_bytes()));
    effort = static_cast<float*>(allocate(sizeof(float)));
    void* arena = allocate(4 * manifest.arena);
    logits = static_cast<float*>(allocate(4 * manifest.classes));
    gates = static_cast<uint8_t*>(allocate(manifest.branches));
    tensors_ = {tensor(image, {1, manifest.height, manifest.width, 3}, kDLUInt, 8), tensor(effort, {}, kDLFloat, 32),
                tensor(arena, {manifest.arena}, kDLFloat, 32), tensor(logits, {1, manifest.classes}, kDLFloat, 32),
                tensor(gates, {manifest.branches}, kDLUInt, 8)};
    for (const Parameter& p : manifest.weights)
      tensors_.push_back(tensor(weights + p.offset, {p.elements}, kDLFloat, 32));
    library_ = library;
  }

  void load() {
    model_.emplace(load_model(library_));
    for (const ffi::Tensor& t : tensors_) arguments_.emplace_back(t);
    load_peak = peak_bytes();
    keep_what_is_freed();
  }

  double run() {  // CPU time in ms
    const double begin = cpu_ms();
    ffi::Any result;
    model_->main.CallPacked(arguments_.data(), static_cast<int32_t>(arguments_.size()), &result);
    return cpu_ms() - begin;
  }

  int64_t image_bytes() const { return 3 * manifest.height * manifest.width; }

  const Manifest manifest;
  char* image;
  float *effort, *logits;
  uint8_t* gates;
  int64_t load_peak = 0;

 private:
  std::string library_;
  std::vector<ffi::Tensor> tensors_;
  std::vector<ffi::AnyView> arguments_;
  std::optional<Model> model_;
};

void run_one(const Options& options, Session& session) {
  const std::string picture = pixels(options.image, session.manifest);
  std::memcpy(session.image, picture.data(), picture.size());
  *session.effort = options.effort;
  session.load();
  Costs costs{{}, session.load_peak, 0};
  const int64_t before = anonymous_bytes();  // 0: not told
  for (int64_t i = 0; i < options.runs; ++i) costs.times.push_back(session.run());
  costs.grown = before ? anonymous_bytes() - before : -1;
  print(options, session.manifest, session.logits, session.gates, costs);
}

void run_stream(const Options& options, Session& session) {
  session.load();
  const size_t bytes = session.image_bytes();
  const int64_t before = anonymous_bytes();  // 0: not told
  while (const size_t begun = std::fread(session.effort, 1, sizeof(float), stdin)) {
    if (begun != sizeof(float) || std::fread(session.image, 1, bytes, stdin) != bytes)
      fail(kImage, "standard input ended inside an image of " + std::to_string(bytes) + " bytes");
    if (std::isnan(*session.effort)) fail(kImage, "an effort must be a number, got nan");
    const double time = session.run();
    print(options, session.manifest, session.logits, session.gates, {{time}, session.load_peak, before ? anonymous_bytes() - before : -1});
    std::fflush(stdout);
  }
}

void run(const Options& options) {
  Session session(options);
  options.image == "-" ? run_stream(options, session) : run_one(options, session);
}

}  // namespace

int main(int count, char** arguments) {
  try {
    run(parse(count, arguments));
    return kDone;
  } catch (const Failure& failure) {
    std::fprintf(stderr, "error: %s\n", failure.message.c_str());
    return failure.code;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return kFault;
  }
}
