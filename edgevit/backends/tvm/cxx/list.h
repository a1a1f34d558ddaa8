// Which images are run: files as they are given, and of a folder the pictures below it, sorted by their paths.
#ifndef EDGEVIT_LIST_H_
#define EDGEVIT_LIST_H_

#include <dirent.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "error.h"
#include "image.h"
#include "text.h"

namespace edgevit {

constexpr int kDeepest = 32;  // folders in each other; links to folders are not followed

inline bool named_as_picture(const std::string& path) {
  return ends(path, ".jpg") || ends(path, ".jpeg") || ends(path, ".png") || ends(path, ".ppm");
}

inline std::vector<std::string> entries(const std::string& path) {
  DIR* const folder = opendir(path.c_str());
  if (!folder) fail(kImage, path + ": " + std::strerror(errno));
  std::vector<std::string> found;
  while (const dirent* entry = readdir(folder))
    if (entry->d_name[0] != '.') found.push_back(path + (path.back() == '/' ? "" : "/") + entry->d_name);
  closedir(folder);
  return found;
}

inline void add_folder(const std::string& path, int depth, std::vector<std::string>& found, int64_t& others) {
  if (depth == kDeepest) fail(kImage, path + ": too many folders in each other");
  for (const std::string& name : entries(path)) {
    struct stat status {};
    if (lstat(name.c_str(), &status)) continue;
    if (S_ISDIR(status.st_mode)) add_folder(name, depth + 1, found, others);
    else if (named_as_picture(name)) found.push_back(name);
    else ++others;
  }
}

inline std::vector<std::string> listed(const std::vector<std::string>& given) {
  std::vector<std::string> found;
  for (const std::string& path : given) {
    struct stat status {};
    if (stat(path.c_str(), &status) || !S_ISDIR(status.st_mode)) {
      found.push_back(path);
      continue;
    }
    std::vector<std::string> pictures;
    int64_t others = 0;
    add_folder(path, 0, pictures, others);
    if (pictures.empty()) fail(kImage, path + " is a folder with no picture named .jpg, .jpeg, .png or .ppm");
    if (others)
      std::fprintf(stderr, "%s: %lld files that are not named .jpg, .jpeg, .png or .ppm are left out\n", shown(path).c_str(),
                   static_cast<long long>(others));
    std::sort(pictures.begin(), pictures.end());
    found.insert(found.end(), pictures.begin(), pictures.end());
  }
  return found;
}

}  // namespace edgevit

#endif  // EDGEVIT_LIST_H_
