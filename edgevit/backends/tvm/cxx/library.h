// A model's library, loaded by its file: what it says of itself, held against model.json, and its functions.
#ifndef EDGEVIT_LIBRARY_H_
#define EDGEVIT_LIBRARY_H_

#include <dlfcn.h>

#include <cstdint>
#include <string>

#include "error.h"
#include "file.h"
#include "manifest.h"
#include "plugin.h"

namespace edgevit {

// Stays loaded until the process ends.
inline const edgevit_library& load_library(const File& file, const Manifest& manifest) {
  void* handle = dlopen(file.alias().c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!handle) fail(kModel, "cannot load " + file.path() + ": " + dlerror() + "; unpack the bundle again");
  const auto* found = static_cast<const edgevit_library*>(dlsym(handle, "edgevit_model"));
  if (!found) fail(kModel, file.path() + " is no library of a model: " + dlerror() + "; unpack the bundle again");
  if (found->library != EDGEVIT_LIBRARY)
    fail(kModel, file.path() + " is a library of kind " + std::to_string(found->library) + ", this runner takes " +
                     std::to_string(EDGEVIT_LIBRARY) + "; build again");
  const auto same = [&](const char* what, uint64_t own, int64_t told) {
    if (own != static_cast<uint64_t>(told))
      fail(kModel, file.path() + " has " + what + " = " + std::to_string(own) + ", model.json says " +
                       std::to_string(told) + "; build again");
  };
  same("memory", found->memory_bytes, manifest.memory);
  same("bytes of arena", found->arena_bytes, 4 * manifest.arena);
  same("bytes of weights", found->weights_bytes, manifest.weights_bytes());
  same("bytes of an image", found->image_bytes, manifest.image_bytes());
  same("classes", found->classes, manifest.classes);
  same("branches", found->branches, manifest.branches);
  same("points", found->points, manifest.points);
  same("threads", found->threads, manifest.threads);
  return *found;
}

}  // namespace edgevit

#endif  // EDGEVIT_LIBRARY_H_
