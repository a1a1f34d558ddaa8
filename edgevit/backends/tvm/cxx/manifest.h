// What a model says about itself: model.json, read and checked.
#ifndef EDGEVIT_MANIFEST_H_
#define EDGEVIT_MANIFEST_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "error.h"
#include "file.h"

namespace edgevit {

constexpr int64_t kSchema = 3;
constexpr int64_t kAlign = 64;                 // Where libraries take memory, weights and images.
constexpr int64_t kLargest = int64_t{1} << 40; // No size in a manifest is larger: products of three of them are checked.
constexpr int64_t kLargestManifest = 2 << 20;   // bytes
constexpr size_t kMostKeys = 64;                // of an object
constexpr int64_t kMostThreads = 64;

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
    if (keys.size() == kMostKeys) bad("more than " + std::to_string(kMostKeys) + " names");
    keys.push_back(std::move(key));
    expect(':');
  }

  std::string read_text() {
    const size_t start = ++at_;
    while (at_ < text_.size() && text_[at_] != '"') {
      if (text_[at_] == '\\' || text_[at_] < ' ' || text_[at_] > '~') bad("an escape, or no character of ASCII");
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

struct Listed {  // a file beside model.json
  std::string path;
  int64_t bytes;
  std::string sha256;
};

struct Manifest {
  std::string tvm;
  std::vector<std::string> machines, flags;
  int64_t height, width, classes, branches, points, arena, memory, threads;
  std::vector<Parameter> weights;
  std::vector<Listed> files;

  int64_t image_bytes() const { return 3 * height * width; }

  int64_t weights_bytes() const { return weights.empty() ? 0 : weights.back().offset + 4 * weights.back().elements; }
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

  int64_t number(const std::string& name, int64_t least, int64_t most = kLargest) const {
    const int64_t value = get(name, Json::kNumber).number;
    if (value < least || value > most)
      bad("has " + name + " = " + std::to_string(value) + ", allowed: " + std::to_string(least) + " to " +
          std::to_string(most));
    return value;
  }

  std::string digest(const std::string& name) const {
    const std::string& text = get(name, Json::kText).text;
    if (text.size() != 64 || text.find_first_not_of("0123456789abcdef") != std::string::npos)
      bad("has " + name + " that is no SHA-256");
    return text;
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

// The file's own digest is of all its bytes without it.
inline void check_own_digest(const std::string& path, std::string text, const std::string& digest) {
  text.erase(text.find(digest), digest.size());
  Sha256 hash;
  hash.add(text.data(), text.size());
  if (hash.hex() != digest)
    fail(kModel, path + " was changed since it was written: its sha256 is another; unpack the bundle again");
}

inline std::vector<Parameter> read_weights(const std::string& path, const Fields& fields) {
  std::vector<Parameter> found;
  int64_t end = 0;
  for (const Json& item : fields.get("weights", Json::kList).items) {
    const Fields part(path + ", weights", item, {"name", "offset_bytes", "elements"});
    part.get("name", Json::kText);
    const Parameter parameter{part.number("offset_bytes", 0), part.number("elements", 1)};
    if (parameter.offset != end || parameter.offset % kAlign)
      fail(kModel, path + " has weights that do not follow each other at 64 bytes; build again");
    end = parameter.offset + 4 * parameter.elements;
    found.push_back(parameter);
  }
  return found;
}

inline std::vector<Listed> read_files(const std::string& path, const Fields& fields) {
  std::vector<Listed> found;
  for (const Json& item : fields.get("files", Json::kList).items) {
    const Fields part(path + ", files", item, {"path", "bytes", "sha256"});
    found.push_back({part.get("path", Json::kText).text, part.number("bytes", 0), part.digest("sha256")});
  }
  return found;
}

// `text` is what the file `path` holds, at most kLargestManifest bytes.
inline Manifest parse_manifest(const std::string& path, const std::string& text) {
  const Json data = JsonReader(path, text).read();
  for (size_t i = 0; i < data.keys.size(); ++i)
    if (data.keys[i] == "schema" && data.items[i].number != kSchema)
      fail(kModel, path + " has schema " + std::to_string(data.items[i].number) + ", this runner reads " +
                       std::to_string(kSchema) + "; build again");
  const Fields fields(path, data,
                      {"schema", "tvm", "isa", "machines", "flags", "height", "width", "classes", "branches", "points",
                       "arena", "memory", "threads", "weights", "files", "sha256"});
  check_own_digest(path, text, fields.digest("sha256"));
  fields.get("isa", Json::kText);
  return {fields.get("tvm", Json::kText).text,
          fields.texts("machines"),
          fields.texts("flags"),
          fields.number("height", 1, 1 << 16),
          fields.number("width", 1, 1 << 16),
          fields.number("classes", 1),
          fields.number("branches", 0),
          fields.number("points", 0),
          fields.number("arena", 1),
          fields.number("memory", 1),
          fields.number("threads", 1, kMostThreads),
          read_weights(path, fields),
          read_files(path, fields)};
}

inline Manifest read_manifest(const std::string& path) {
  return parse_manifest(path, File(path, kModel).text(kLargestManifest));
}

// Hold a file against what model.json lists: all of it is hashed before any of it is mapped, loaded or run.
inline void check_listed(const File& file, const Manifest& manifest) {
  const std::string name = file.path().substr(file.path().rfind('/') + 1);
  for (const Listed& listed : manifest.files) {
    if (listed.path != name) continue;
    if (file.size() != listed.bytes)
      fail(kModel, file.path() + " has " + std::to_string(file.size()) + " bytes, model.json says " +
                       std::to_string(listed.bytes) + "; unpack the bundle again");
    if (file.sha256() != listed.sha256)
      fail(kModel, file.path() + " was changed since it was written: its sha256 is another; unpack the bundle again");
    return;
  }
  fail(kModel, "model.json lists no " + name + "; build again");
}

}  // namespace edgevit

#endif  // EDGEVIT_MANIFEST_H_
