// Names of files and classes on a terminal and in JSON, whatever bytes they are of.
#ifndef EDGEVIT_TEXT_H_
#define EDGEVIT_TEXT_H_

#include <cstdint>
#include <cstdio>
#include <string>

namespace edgevit {

// The character of UTF-8 that begins at `at`, which goes behind it; a byte that is none becomes U+DC80 to U+DCFF.
inline uint32_t next_character(const std::string& text, size_t& at) {
  const auto byte = [&](size_t i) { return i < text.size() ? static_cast<uint32_t>(text[i] & 0xff) : 0u; };
  const uint32_t first = byte(at);
  const int more = first < 0x80 ? 0 : first >= 0xc2 && first < 0xe0 ? 1 : (first & 0xf0) == 0xe0 ? 2 : (first & 0xf8) == 0xf0 ? 3 : -1;
  uint32_t code = more > 0 ? first & (0x3fu >> more) : first;
  bool held = more >= 0;
  for (int i = 1; i <= more; ++i) {
    held &= (byte(at + static_cast<size_t>(i)) & 0xc0) == 0x80;
    code = code << 6 | (byte(at + static_cast<size_t>(i)) & 0x3f);
  }
  const uint32_t least[] = {0, 0x80, 0x800, 0x10000};
  held = held && code >= least[more] && code <= 0x10ffff && (code < 0xd800 || code > 0xdfff);
  at += held ? static_cast<size_t>(more) + 1 : 1;
  return held ? code : 0xdc00 + first;
}

inline void add_escape(std::string& to, uint32_t code) {
  char word[16];
  if (code > 0xffff) {
    std::snprintf(word, sizeof word, "\\u%04x\\u%04x", 0xd800 + ((code - 0x10000) >> 10), 0xdc00 + (code & 0x3ff));
  } else {
    std::snprintf(word, sizeof word, "\\u%04x", code);
  }
  to += word;
}

// Without control characters, and what changes the direction of writing: no name steers the terminal.
inline std::string shown(const std::string& text) {
  std::string found;
  for (size_t at = 0; at < text.size();) {
    const size_t begin = at;
    const uint32_t code = next_character(text, at);
    const bool steers = code < 0x20 || (code >= 0x7f && code <= 0x9f) || code == 0x200e || code == 0x200f ||
                        (code >= 0x2028 && code <= 0x202e) || (code >= 0x2066 && code <= 0x2069) ||
                        (code >= 0xdc80 && code <= 0xdcff);
    if (steers) add_escape(found, code);
    else found.append(text, begin, at - begin);
  }
  return found;
}

inline std::string in_json(const std::string& text) {  // with its quotes, in ASCII
  std::string found = "\"";
  for (size_t at = 0; at < text.size();) {
    const uint32_t code = next_character(text, at);
    if (code == '"' || code == '\\') (found += '\\') += static_cast<char>(code);
    else if (code < 0x20 || code > 0x7e) add_escape(found, code);
    else found += static_cast<char>(code);
  }
  return found + '"';
}

}  // namespace edgevit

#endif  // EDGEVIT_TEXT_H_
