// Pillow's resize of 8-bit pictures, bit for bit: weights in fixed point of 22 bits, rows and columns one after the other,
// each rounded to 8 bits. Only a window of the result is computed, and of the picture only what that needs.
#ifndef EDGEVIT_RESIZE_H_
#define EDGEVIT_RESIZE_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "picture.h"

namespace edgevit {

constexpr int kFixed = 22;  // bits behind the point: 8 of the pixel and 2 of overshoot are in front of it

struct Window {  // of the resized picture; ends are not in it
  int64_t left, top, right, bottom;
};

inline double sinc(double x) { return x == 0 ? 1 : std::sin(x * M_PI) / (x * M_PI); }

struct Filter {
  const char* name;
  double support;
  double (*weight)(double);
};

constexpr Filter kFilters[] = {
    {"box", 0.5, [](double x) { return x > -0.5 && x <= 0.5 ? 1.0 : 0.0; }},
    {"bilinear", 1, [](double x) { return std::fabs(x) < 1 ? 1 - std::fabs(x) : 0.0; }},
    {"hamming", 1,
     [](double x) {
       x = std::fabs(x);
       if (x == 0) return 1.0;
       if (x >= 1) return 0.0;
       x *= M_PI;
       return std::sin(x) / x * (static_cast<double>(0.54f) + static_cast<double>(0.46f) * std::cos(x));
     }},
    {"bicubic", 2,
     [](double x) {
       constexpr double a = -0.5;
       x = std::fabs(x);
       if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
       if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
       return 0.0;
     }},
    {"lanczos", 3, [](double x) { return x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0.0; }},
};

// Of each place in [begin, end) of a side that goes from `from` to `to` pixels: where its weights begin, and these.
struct Weights1d {
  struct Place {
    int64_t first, count;
    const int32_t* weights;
  };
  std::vector<Place> places;
  std::vector<int32_t> all;

  Weights1d(const Filter& filter, int64_t from, int64_t to, int64_t begin, int64_t end) {
    const double scale = static_cast<double>(from) / static_cast<double>(to), wide = std::max(scale, 1.0);
    const double support = filter.support * wide, narrow = 1.0 / wide;
    const auto most = 2 * static_cast<size_t>(std::ceil(support)) + 1;
    all.resize(most * static_cast<size_t>(end - begin));
    std::vector<double> exact(most);
    for (int64_t place = begin; place < end; ++place) {
      const double center = (static_cast<double>(place) + 0.5) * scale;
      const int64_t first = std::max<int64_t>(static_cast<int64_t>(center - support + 0.5), 0);
      const int64_t count = std::min(static_cast<int64_t>(center + support + 0.5), from) - first;
      double sum = 0;
      for (int64_t i = 0; i < count; ++i) {
        exact[i] = filter.weight((static_cast<double>(i + first) - center + 0.5) * narrow);
        sum += exact[i];
      }
      int32_t* const weights = &all[most * static_cast<size_t>(place - begin)];
      for (int64_t i = 0; i < count; ++i) {
        const double value = (sum != 0 ? exact[i] / sum : exact[i]) * (1 << kFixed);
        weights[i] = static_cast<int32_t>(value < 0 ? value - 0.5 : value + 0.5);
      }
      places.push_back({first, count, weights});
    }
  }

  int64_t first() const { return places.front().first; }
  int64_t end() const { return places.back().first + places.back().count; }
};

inline void weigh(const Weights1d::Place& place, const uint8_t* from, int64_t step, uint8_t* to) {
  int32_t sums[3] = {1 << (kFixed - 1), 1 << (kFixed - 1), 1 << (kFixed - 1)};
  for (int64_t i = 0; i < place.count; ++i, from += step)
    for (int c = 0; c < 3; ++c) sums[c] += from[c] * place.weights[i];
  for (int c = 0; c < 3; ++c) to[c] = static_cast<uint8_t>(std::min(std::max(sums[c] >> kFixed, 0), 255));
}

// Which pixel is nearest; sums of steps round as Pillow's do.
inline std::vector<int64_t> nearest(int64_t from, int64_t to) {
  const double step = static_cast<double>(from) / static_cast<double>(to);
  std::vector<int64_t> found;
  double at = step * 0.5;
  for (int64_t i = 0; i < to; ++i, at += step) found.push_back(std::min(static_cast<int64_t>(at), from - 1));
  return found;
}

inline Picture resize_nearest(const Picture& picture, int64_t width, int64_t height, const Window& seen) {
  const std::vector<int64_t> columns = nearest(picture.width, width), rows = nearest(picture.height, height);
  Picture made(seen.right - seen.left, seen.bottom - seen.top);
  for (int64_t y = 0; y < made.height; ++y)
    for (int64_t x = 0; x < made.width; ++x)
      std::copy_n(picture.at(columns[x + seen.left], rows[y + seen.top]), 3, made.at(x, y));
  return made;
}

// Rows from `top` to `bottom`, each weighed across; the picture begins `shift` columns late.
inline Picture across(const Picture& from, const Weights1d& columns, int64_t shift, int64_t top, int64_t bottom) {
  Picture made(static_cast<int64_t>(columns.places.size()), bottom - top);
  for (int64_t y = 0; y < made.height; ++y)
    for (int64_t x = 0; x < made.width; ++x)
      weigh(columns.places[x], from.at(columns.places[x].first - shift, y + top), 3, made.at(x, y));
  return made;
}

// Columns from `left` to `right`, each weighed down; the picture begins `shift` rows late.
inline Picture down(const Picture& from, const Weights1d& rows, int64_t shift, int64_t left, int64_t right) {
  Picture made(right - left, static_cast<int64_t>(rows.places.size()));
  for (int64_t y = 0; y < made.height; ++y)
    for (int64_t x = 0; x < made.width; ++x)
      weigh(rows.places[y], from.at(x + left, rows.places[y].first - shift), 3 * from.width, made.at(x, y));
  return made;
}

inline Picture cut(const Picture& from, const Window& seen) {
  Picture made(seen.right - seen.left, seen.bottom - seen.top);
  for (int64_t y = 0; y < made.height; ++y) std::copy_n(from.at(seen.left, y + seen.top), 3 * made.width, made.at(0, y));
  return made;
}

// The window of the picture as it is at width x height.
inline Picture resize(const Picture& from, int64_t width, int64_t height, const std::string& name, const Window& seen) {
  if (name == "nearest") return resize_nearest(from, width, height, seen);
  if (width == from.width && height == from.height) return cut(from, seen);
  const Filter& filter = *std::find_if(std::begin(kFilters), std::end(kFilters), [&](const Filter& f) { return f.name == name; });
  const Weights1d rows(filter, from.height, height, seen.top, seen.bottom);
  const Weights1d columns(filter, from.width, width, seen.left, seen.right);
  if (width == from.width) return down(from, rows, 0, seen.left, seen.right);
  if (height == from.height) return across(from, columns, 0, seen.top, seen.bottom);
  // Pillow 13's rule; before it, rows were always first.
  if (height < from.height && from.height - height > 2 * (from.width - width)) {
    const Picture between = down(from, rows, 0, columns.first(), columns.end());
    return across(between, columns, columns.first(), 0, between.height);
  }
  const Picture between = across(from, columns, 0, rows.first(), rows.end());
  return down(between, rows, rows.first(), 0, between.width);
}

}  // namespace edgevit

#endif  // EDGEVIT_RESIZE_H_
