// Memory that a model runs in, freed when its owner goes.
#ifndef EDGEVIT_MEMORY_H_
#define EDGEVIT_MEMORY_H_

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <string>

#include "error.h"
#include "file.h"
#include "manifest.h"

namespace edgevit {

class Buffer {
 public:
  explicit Buffer(int64_t bytes) {
    data_ = std::aligned_alloc(kAlign, static_cast<size_t>((bytes + kAlign) / kAlign * kAlign));
    if (!data_) fail(kRuntime, "no memory for " + std::to_string(bytes) + " bytes");
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { std::free(data_); }

  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_;
};

class Weights {  // mapped: pages are read when a branch first runs, and belong to the file
 public:
  Weights(const File& file, const Manifest& manifest) : bytes_(manifest.weights_bytes()) {
    check_listed(file, manifest.files);
    if (file.size() != bytes_)
      fail(kModel, file.path() + " has " + std::to_string(file.size()) + " bytes, its weights take " +
                       std::to_string(bytes_) + "; unpack the bundle again");
    if (bytes_) data_ = file.map();
  }
  Weights(const Weights&) = delete;
  Weights& operator=(const Weights&) = delete;
  ~Weights() {
    if (data_) munmap(const_cast<char*>(data_), static_cast<size_t>(bytes_));
  }

  const char* data() const { return data_; }

 private:
  int64_t bytes_;
  const char* data_ = nullptr;
};

}  // namespace edgevit

#endif  // EDGEVIT_MEMORY_H_
