// Memory that a model runs in, freed when its owner goes, and tensors over it.
#ifndef EDGEVIT_MEMORY_H_
#define EDGEVIT_MEMORY_H_

#include <sys/mman.h>
#include <tvm/ffi/container/tensor.h>

#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

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
    check_listed(file, manifest);
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

struct Borrowed {  // A tensor over memory that outlives it.
  void AllocData(DLTensor* tensor, const void* data) { tensor->data = const_cast<void*>(data); }
  void FreeData(DLTensor*) {}
};

inline tvm::ffi::Tensor tensor(const void* data, std::vector<int64_t> shape, DLDataTypeCode code, int bits) {
  if (reinterpret_cast<uintptr_t>(data) % kAlign) fail(kFault, "data is not aligned to 64 bytes");
  const DLDataType kind{static_cast<uint8_t>(code), static_cast<uint8_t>(bits), 1};
  return tvm::ffi::Tensor::FromNDAlloc(Borrowed(), tvm::ffi::ShapeView(shape.data(), shape.size()), kind,
                                       DLDevice{kDLCPU, 0}, data);
}

}  // namespace edgevit

#endif  // EDGEVIT_MEMORY_H_
