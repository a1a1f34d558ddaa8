// JSON that edgevit wrote: model.json, which is plain (whole numbers, ASCII without escapes), and manifest.json, which is not.
#ifndef EDGEVIT_JSON_H_
#define EDGEVIT_JSON_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "error.h"

namespace edgevit {

constexpr int64_t kLargest = int64_t{1} << 40;  // No size in a manifest is larger: products of three of them are checked.

struct Json {
  enum Kind { kNumber, kText, kList, kMap, kReal, kTruth, kNull } kind = kNumber;
  int64_t number = 0;  // a truth is 0 or 1
  double real = 0;     // of a number too
  std::string text;
  std::vector<std::string> keys;  // of a map, beside `items`
  std::vector<Json> items;

  const Json* find(const std::string& key) const {  // of a map, or null
    const auto found = std::find(keys.begin(), keys.end(), key);
    return found == keys.end() ? nullptr : &items[static_cast<size_t>(found - keys.begin())];
  }
};

class JsonReader {
 public:
  enum Form { kPlain, kAny };

  JsonReader(std::string path, std::string text, Form form = kPlain)
      : path_(std::move(path)), text_(std::move(text)), any_(form == kAny) {}

  Json read() { return read({}); }

  // Of the map that the file is, only these names are kept, all if there are none: what nobody asks for takes no memory.
  Json read(std::vector<std::string> kept) {
    kept_ = std::move(kept);
    Json value = read_value(0);
    end();
    return value;
  }

  // Calls `told` with each text of the list that the file is, one after the other.
  template <typename Function>
  void each_text(Function told) {
    expect('[');
    if (skip() == ']') ++at_;
    else
      do {
        if (skip() != '"') bad("no text");
        told(read_text());
      } while (another(']'));
    end();
  }

 private:
  [[noreturn]] void bad(const std::string& what) const {
    fail(kModel, path_ + " is not what edgevit writes: " + what + " at byte " + std::to_string(at_) +
                     "; unpack the bundle again");
  }

  void end() {
    if (skip() != '\0' || at_ != text_.size()) bad("more after its end");
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
    if (depth > (any_ ? 12 : 3)) bad("too deep a nesting");
    Json value;
    const char first = skip();
    if (first == '"') {
      value.kind = Json::kText;
      value.text = read_text();
    } else if (first == '{' || first == '[') {
      read_items(value, depth, first == '{');
    } else if (any_ && (first == 't' || first == 'f' || first == 'n')) {
      read_word(value);
    } else {
      read_number(value);
    }
    return value;
  }

  void read_items(Json& value, int depth, bool map) {
    value.kind = map ? Json::kMap : Json::kList;
    const char close = map ? '}' : ']';
    ++at_;
    if (skip() == close) {
      ++at_;
      return;
    }
    do {
      if (map) read_key(value.keys);
      Json item = read_value(depth + 1);
      if (map && !depth && !kept_.empty() && std::find(kept_.begin(), kept_.end(), value.keys.back()) == kept_.end())
        value.keys.pop_back();
      else
        value.items.push_back(std::move(item));
    } while (another(close));
  }

  void read_key(std::vector<std::string>& keys) {
    if (skip() != '"') bad("no name");
    std::string key = read_text();
    if (std::find(keys.begin(), keys.end(), key) != keys.end()) bad(key + " twice");
    if (keys.size() == (any_ ? 1024 : 64)) bad("more than " + std::to_string(keys.size()) + " names");
    keys.push_back(std::move(key));
    expect(':');
  }

  void read_word(Json& value) {
    for (const char* word : {"true", "false", "null"}) {
      if (text_.compare(at_, std::strlen(word), word)) continue;
      at_ += std::strlen(word);
      value.kind = *word == 'n' ? Json::kNull : Json::kTruth;
      value.number = *word == 't';
      return;
    }
    bad("no value");
  }

  std::string read_text() {
    std::string read;
    for (++at_; at_ < text_.size() && text_[at_] != '"';) {
      const auto byte = static_cast<unsigned char>(text_[at_]);
      const bool escaped = byte == '\\';
      if (byte < ' ' || (!any_ && (escaped || byte > '~'))) bad("an escape, or no character of ASCII");
      if (escaped) read_escape(read);
      else read += text_[at_++];
    }
    if (at_ == text_.size()) bad("a string without an end");
    ++at_;
    return read;
  }

  void read_escape(std::string& read) {
    static const char* const names = "\"\\/bfnrt";
    static const char* const meant = "\"\\/\b\f\n\r\t";
    const char name = ++at_ < text_.size() ? text_[at_++] : '\0';
    if (const char* found = name ? std::strchr(names, name) : nullptr) {
      read += meant[found - names];
      return;
    }
    if (name != 'u') bad("no escape");
    uint32_t code = read_hex();
    if (code >= 0xd800 && code < 0xdc00 && !text_.compare(at_, 2, "\\u")) {
      at_ += 2;
      const uint32_t low = read_hex();
      if (low < 0xdc00 || low > 0xdfff) bad("half a character");
      code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    }
    if (code < 0x80) return void(read += static_cast<char>(code));
    const int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    read += static_cast<char>((more == 1 ? 0xc0 : more == 2 ? 0xe0 : 0xf0) | code >> (6 * more));
    for (int i = more - 1; i >= 0; --i) read += static_cast<char>(0x80 | (code >> (6 * i) & 0x3f));
  }

  uint32_t read_hex() {
    uint32_t code = 0;
    for (int i = 0; i < 4; ++i, ++at_) {
      const char c = at_ < text_.size() ? text_[at_] : '\0';
      const bool digit = c >= '0' && c <= '9', letter = (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
      if (!digit && !letter) bad("no escape");
      code = code << 4 | static_cast<uint32_t>(digit ? c - '0' : (c | 32) - 'a' + 10);
    }
    return code;
  }

  void read_number(Json& value) {
    const size_t start = at_;
    if (any_ && at_ < text_.size() && text_[at_] == '-') ++at_;
    const size_t first = at_;
    for (; at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9'; ++at_)
      if (value.number <= kLargest) value.number = 10 * value.number + (text_[at_] - '0');
    if (at_ == first || (text_[first] == '0' && at_ > first + 1)) bad("no whole number");
    while (any_ && at_ < text_.size() && text_[at_] && std::strchr(".eE+-0123456789", text_[at_])) {
      value.kind = Json::kReal;
      ++at_;
    }
    const bool whole = value.kind == Json::kNumber && first == start;
    if (!any_ && value.number > kLargest) bad("too large a number");
    if (whole && value.number <= kLargest) {
      value.real = static_cast<double>(value.number);
      return;
    }
    const std::string word = text_.substr(start, at_ - start);
    char* end = nullptr;
    value.kind = Json::kReal;
    value.real = std::strtod(word.c_str(), &end);
    if (*end || !std::isfinite(value.real)) bad("no number");
  }

  std::string path_, text_;
  bool any_;
  std::vector<std::string> kept_;
  size_t at_ = 0;
};

}  // namespace edgevit

#endif  // EDGEVIT_JSON_H_
