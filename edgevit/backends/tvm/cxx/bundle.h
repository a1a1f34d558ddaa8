// What a bundle says beside its model: manifest.json, read for what a picture, a class and an operating point need.
#ifndef EDGEVIT_BUNDLE_H_
#define EDGEVIT_BUNDLE_H_

#include <array>
#include <cerrno>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <sys/stat.h>

#include "error.h"
#include "file.h"
#include "json.h"
#include "manifest.h"

namespace edgevit {

constexpr int64_t kBundleSchema = 3;
constexpr int64_t kLargestLabels = 16 << 20;  // bytes

// How a picture becomes the model's input, as `ImageSpec` of the manifest says.
struct Preprocessing {
  int64_t height, width;
  std::array<double, 3> mean;
  double crop_pct;
  std::string interpolation, crop_mode;
  bool upright;  // turned as EXIF says
};

struct Point {  // of operation
  std::string name;
  float effort;
};

class Bundle {
 public:
  bool there = false;  // a folder may hold no more than a compiled model
  bool features = false;
  bool steered = true;  // whether its cost follows the image, or an effort
  std::vector<Point> points;
  Preprocessing preprocessing{};

  // `manifest` is of the same folder's model.json, which has to be the listed one.
  Bundle(const std::string& folder, const Manifest& manifest) : folder_(folder) {
    const std::string path = folder + "/manifest.json";
    struct stat status {};
    if (stat(path.c_str(), &status) && errno == ENOENT) return;
    there = true;
    const std::string text = File(path, kModel).text(kLargestManifest);
    const Json data = JsonReader(path, text, JsonReader::kAny)
                          .read({"schema", "input", "outputs", "effort", "points", "labels", "files", "sha256"});
    const Fields fields(path, data);
    if (fields.number("schema", 0) != kBundleSchema)
      fail(kModel, path + " has schema " + std::to_string(fields.number("schema", 0)) + ", this runner reads " +
                       std::to_string(kBundleSchema) + "; build again");
    check_own_digest(path, text, fields.digest("sha256"));
    files_ = read_files(path, fields);
    check_listed(File(folder + "/model.json", kModel), files_, "manifest.json");
    read_input(path, fields, manifest);
    read_output(path, fields, manifest);
    read_points(path, fields);
    const Json* const effort = data.find("effort");
    steered = !effort || effort->kind != Json::kNull;
    const Json& labels = fields.get("labels");
    if (labels.kind != Json::kNull) read_labels(fields.get("labels", Json::kText).text, manifest);
  }

  bool labelled() const { return !labels_.empty(); }

  // The names of some classes, in the order in which they are asked for.
  std::vector<std::string> labels(const std::vector<int64_t>& classes) const {
    std::vector<std::string> found(classes.size());
    int64_t at = 0;
    JsonReader(folder_, labels_, JsonReader::kAny).each_text([&](std::string&& name) {
      for (size_t i = 0; i < classes.size(); ++i)
        if (classes[i] == at) found[i] = name;
      ++at;
    });
    return found;
  }

  float effort(const std::string& name) const {
    std::string known;
    for (const Point& point : points) {
      if (point.name == name) return point.effort;
      known += (known.empty() ? "" : ", ") + point.name;
    }
    fail(kUsage, "this bundle has no operating point '" + name + "': it has " + (known.empty() ? "none" : known) +
                     "; --effort takes a number too");
  }

 private:
  void read_input(const std::string& path, const Fields& fields, const Manifest& manifest) {
    const Fields input(path + ", input", fields.get("input", Json::kMap));
    const Fields spec(path + ", preprocessing", input.get("preprocessing", Json::kMap));
    preprocessing.height = spec.number("height", manifest.height, manifest.height);
    preprocessing.width = spec.number("width", manifest.width, manifest.width);
    preprocessing.crop_pct = spec.real("crop_pct", 0.01, 10);
    preprocessing.interpolation =
        spec.one_of("interpolation", {"nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"});
    preprocessing.crop_mode = spec.one_of("crop_mode", {"center", "squash", "border"});
    preprocessing.upright = spec.one_of("orientation", {"ignore", "apply"}) == "apply";
    const Json& mean = spec.get("mean", Json::kList);
    if (mean.items.size() != 3) fail(kModel, path + " has a mean of other than three colours; build again");
    for (size_t i = 0; i < 3; ++i) preprocessing.mean[i] = std::min(std::max(mean.items[i].real, 0.0), 1.0);
  }

  void read_output(const std::string& path, const Fields& fields, const Manifest& manifest) {
    for (const Json& item : fields.get("outputs", Json::kList).items) {
      const Fields output(path + ", outputs", item);
      if (output.get("name", Json::kText).text != "logits") continue;
      features = output.get("kind", Json::kText).text == "features";
      const Json& shape = output.get("shape", Json::kList);
      if (shape.items.empty() || shape.items.back().number != manifest.classes)
        fail(kModel, path + " has other classes than model.json; unpack the bundle again");
    }
  }

  void read_points(const std::string& path, const Fields& fields) {
    for (const Json& item : fields.get("points", Json::kList).items) {
      const Fields point(path + ", points", item);
      if (point.get("name").kind == Json::kText)
        points.push_back({point.get("name").text, static_cast<float>(point.real("effort", -1e30, 1e30))});
    }
  }

  void read_labels(const std::string& name, const Manifest& manifest) {
    if (name.find('/') != std::string::npos) fail(kModel, "manifest.json names labels elsewhere; unpack the bundle again");
    const File file(folder_ + "/" + name, kModel);
    check_listed(file, files_, "manifest.json");
    labels_ = file.text(kLargestLabels);
    int64_t count = 0;
    JsonReader(file.path(), labels_, JsonReader::kAny).each_text([&](std::string&&) { ++count; });
    if (count != manifest.classes)
      fail(kModel, file.path() + " names " + std::to_string(count) + " classes, the model has " +
                       std::to_string(manifest.classes) + "; unpack the bundle again");
  }

  std::string folder_, labels_;
  std::vector<Listed> files_;
};

}  // namespace edgevit

#endif  // EDGEVIT_BUNDLE_H_
