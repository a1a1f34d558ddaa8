// Numbers in words: the whole word, in decimal, within what it can hold; or nothing.
#ifndef EDGEVIT_NUMBER_H_
#define EDGEVIT_NUMBER_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <optional>
#include <string>

namespace edgevit {

inline bool digit(char c) { return c >= '0' && c <= '9'; }

inline std::optional<int64_t> whole_number(const std::string& word) {  // without a sign
  if (word.empty() || !std::all_of(word.begin(), word.end(), digit)) return {};
  int64_t value = 0;
  for (const char c : word) {
    if (value > (std::numeric_limits<int64_t>::max() - (c - '0')) / 10) return {};
    value = 10 * value + (c - '0');
  }
  return value;
}

inline std::optional<float> real_number(const std::string& word) {  // infinity too, nan not
  const std::string bare = !word.empty() && (word[0] == '-' || word[0] == '+') ? word.substr(1) : word;
  const bool infinite = bare == "inf" || bare == "infinity";
  if (bare.empty() || (!infinite && !digit(bare[0]) && bare[0] != '.')) return {};
  if (!infinite && bare.find_first_not_of("0123456789.eE+-") != std::string::npos) return {};
  char* end = nullptr;
  const float value = std::strtof(word.c_str(), &end);
  if (*end || end == word.c_str() || std::isnan(value) || std::isinf(value) != infinite) return {};
  return value;
}

}  // namespace edgevit

#endif  // EDGEVIT_NUMBER_H_
