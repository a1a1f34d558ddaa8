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
#include "json.h"

namespace edgevit {

constexpr int64_t kSchema = 3;
constexpr int64_t kAlign = 64;                 // Where libraries take memory, weights and images.
constexpr int64_t kLargestManifest = 2 << 20;   // bytes
constexpr int64_t kMostThreads = 64;

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
  Fields(std::string path, const Json& map) : path_(std::move(path)), map_(map) {
    if (map.kind != Json::kMap) bad("is not an object");
  }

  // Of an object that has these and no others.
  Fields(std::string path, const Json& map, std::vector<std::string> names) : Fields(std::move(path), map) {
    for (const std::string& key : map.keys)
      if (std::find(names.begin(), names.end(), key) == names.end()) bad("has an unknown field " + key);
    for (const std::string& name : names) get(name);
  }

  const Json& get(const std::string& name) const {
    const Json* const found = map_.find(name);
    if (!found) bad("has no field " + name);
    return *found;
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

  double real(const std::string& name, double least, double most) const {
    const Json& value = get(name);
    if (value.kind != Json::kNumber && value.kind != Json::kReal) bad("has a field " + name + " of another type");
    if (!(value.real >= least && value.real <= most)) bad("has a " + name + " out of range");
    return value.real;
  }

  std::string one_of(const std::string& name, const std::vector<const char*>& allowed) const {
    const std::string& text = get(name, Json::kText).text;
    if (std::find(allowed.begin(), allowed.end(), text) == allowed.end()) bad("has a " + name + " that is unknown here");
    return text;
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

// Hold a file against what model.json, or `by`, lists: all of it is hashed before any of it is mapped, loaded or run.
inline void check_listed(const File& file, const std::vector<Listed>& files, const std::string& by = "model.json") {
  const std::string name = file.path().substr(file.path().rfind('/') + 1);
  for (const Listed& listed : files) {
    if (listed.path != name) continue;
    if (file.size() != listed.bytes)
      fail(kModel, file.path() + " has " + std::to_string(file.size()) + " bytes, " + by + " says " +
                       std::to_string(listed.bytes) + "; unpack the bundle again");
    if (file.sha256() != listed.sha256)
      fail(kModel, file.path() + " was changed since it was written: its sha256 is another; unpack the bundle again");
    return;
  }
  fail(kModel, by + " lists no " + name + "; build again");
}

}  // namespace edgevit

#endif  // EDGEVIT_MANIFEST_H_
