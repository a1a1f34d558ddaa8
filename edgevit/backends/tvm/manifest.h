// What a model says about itself: model.json, read and checked. And how everything that fails is told.
#ifndef EDGEVIT_MANIFEST_H_
#define EDGEVIT_MANIFEST_H_

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

namespace edgevit {

enum Exit { kDone = 0, kFault = 1, kUsage = 2, kImage = 15, kRuntime = 18, kModel = 19 };

struct Failure {
  Exit code;
  std::string message;
};

[[noreturn]] inline void fail(Exit code, const std::string& message) { throw Failure{code, message}; }

constexpr int64_t kSchema = 1;
constexpr size_t kAlign = 64;                  // The runtime crashes on data that is not aligned, and does not say why.
constexpr int64_t kLargest = int64_t{1} << 40; // No size in a manifest is larger: products of three of them are checked.

inline std::string read_file(const std::string& path, Exit code) {
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
  int64_t height, width, classes, branches, arena, threads;
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

inline Manifest read_manifest(const std::string& path) {
  const Json data = JsonReader(path, read_file(path, kModel)).read();
  for (size_t i = 0; i < data.keys.size(); ++i)
    if (data.keys[i] == "schema" && data.items[i].number != kSchema)
      fail(kModel, path + " has schema " + std::to_string(data.items[i].number) + ", this runner reads " +
                       std::to_string(kSchema) + "; build again");
  const Fields fields(path, data,
                      {"schema", "tvm", "isa", "machines", "flags", "height", "width", "classes", "branches", "arena",
                       "threads", "weights"});
  fields.get("isa", Json::kText);
  Manifest found{fields.get("tvm", Json::kText).text,
                 fields.texts("machines"),
                 fields.texts("flags"),
                 fields.number("height", 1),
                 fields.number("width", 1),
                 fields.number("classes", 1),
                 fields.number("branches", 0),
                 fields.number("arena", 1),
                 fields.number("threads", 1),
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

}  // namespace edgevit

#endif  // EDGEVIT_MANIFEST_H_
