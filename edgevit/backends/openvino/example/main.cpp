// Run the model of this bundle on an image: raw uint8 RGB, {{ m.input.shape[2] }} x {{ m.input.shape[1] }} pixels, row by row.
// Prints the five likeliest classes. Built by the CMakeLists.txt beside it; takes the bundle's folder and the image:
//
//   ../build/example . ../image.raw{{ " [effort]" if m.effort }}
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <iterator>
{% if named %}
#include <map>
{% endif %}
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include <openvino/openvino.hpp>

namespace {

// As runner/run.py sets it up: what was verified and bounded is this.
ov::AnyMap settings() {
  ov::AnyMap found;
{% for key, value in m.runtime_settings.items() %}
  found["{{ key }}"] = "{{ ("YES" if value else "NO") if value is boolean else value }}";
{% endfor %}
  found["INFERENCE_NUM_THREADS"] = "{{ m.target.threads }}";
{% if m.target.weight_bits == 8 and m.target.arch == "x86_64" %}
  // int8 kernels saturate on an x86 CPU without VNNI: there the model is computed as written, in float.
  std::ifstream cpu("/proc/cpuinfo");
  const std::string told((std::istreambuf_iterator<char>(cpu)), std::istreambuf_iterator<char>());
  if (!told.empty() && told.find("vnni") == std::string::npos) found["LP_TRANSFORMS_MODE"] = "NO";
{% endif %}
  return found;
}

void read(const std::string& path, ov::Tensor& image) {
  std::ifstream file(path, std::ios::binary);
  if (!file.read(reinterpret_cast<char*>(image.data<std::uint8_t>()), static_cast<std::streamsize>(image.get_byte_size())) ||
      file.peek() != std::ifstream::traits_type::eof())
    throw std::runtime_error(path + " does not hold " + std::to_string(image.get_byte_size()) + " bytes");
}

void run(const std::string& bundle, const std::string& path, float effort) {
  ov::Core core;
  ov::InferRequest request = core.compile_model(bundle + "/{{ m.model }}", "CPU", settings()).create_infer_request();
  ov::Tensor image(ov::element::u8, { {{- m.input.shape | join(", ") -}} });
  read(path, image);
  request.set_tensor("image", image);
{% if m.effort %}
  ov::Tensor given = request.get_tensor("effort");
  *given.data<float>() = effort;
{% else %}
  (void)effort;
{% endif %}
  request.infer();
  const ov::Tensor logits = request.get_tensor("logits"), gates = request.get_tensor("gates");
  const float* scores = logits.data<float>();
  std::vector<std::size_t> order(logits.get_size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return scores[a] > scores[b]; });
  for (std::size_t place = 0; place < std::min<std::size_t>(5, order.size()); ++place)
    std::printf("class %zu: %.9g\n", order[place], static_cast<double>(scores[order[place]]));
  for (std::size_t i = 0; i < gates.get_size(); ++i) std::printf("%d ", gates.data<std::uint8_t>()[i]);
  std::printf("(branches that ran)\n");
}

{% if m.effort %}
// Put into `effort` what a word stands for{{ ": a number, or the name of an operating point" if named }}; return whether it is one.
bool read_effort(const std::string& word, float& effort) {
{% if named %}
  // 1e+30 stands for infinity: an effort above every threshold.
  static const std::map<std::string, float> points = { {%- for point in named %}{"{{ point.name }}", static_cast<float>({{ "%.9g" | format(point.effort) }})}{{ ", " if not loop.last }}{% endfor -%} };
  const auto found = points.find(word);
  if (found != points.end()) {
    effort = found->second;
    return true;
  }
{% endif %}
  char* rest = nullptr;
  effort = std::strtof(word.c_str(), &rest);
  return rest != word.c_str() && *rest == '\0' && effort == effort;
}

{% endif %}
}  // namespace

int main(int count, char** words) {
  float effort = 0;
  if (count < 3 || count > {{ 4 if m.effort else 3 }}) {
    std::fprintf(stderr, "usage: %s BUNDLE image.raw{{ " [effort]" if m.effort }}\n", words[0]);
    return 2;
  }
{% if m.effort %}
  if (count > 3 && !read_effort(words[3], effort)) {
    std::fprintf(stderr, "%s is no effort; allowed: a number{{ ", " ~ named | map(attribute="name") | join(", ") if named }}\n", words[3]);
    return 2;
  }
{% endif %}
  try {
    run(words[1], words[2], effort);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
