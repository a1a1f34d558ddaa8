// Files: opened once, so that what is looked at, hashed, read, mapped and loaded is the same one, whatever its path names
// by then. Whoever can write into a file can still change it after it was hashed: keep a model where only its owner can.
#ifndef EDGEVIT_FILE_H_
#define EDGEVIT_FILE_H_

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>

#include "error.h"
#include "sha256.h"

namespace edgevit {

class File {
 public:
  // A regular file; anything else fails with `code`, before a byte of it is read.
  File(std::string path, Exit code) : path_(std::move(path)), code_(code) {
    // A pipe that nobody writes into must not hold this program.
    handle_ = open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    struct stat status {};
    if (handle_ < 0) refuse("cannot read " + path_ + ": " + std::strerror(errno));
    if (fstat(handle_, &status)) refuse("cannot read " + path_ + ": " + std::strerror(errno));
    if (!S_ISREG(status.st_mode)) refuse(path_ + " is " + (S_ISDIR(status.st_mode) ? "a folder" : "no regular file"));
    size_ = status.st_size;
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  ~File() { close(); }

  int64_t size() const { return size_; }
  const std::string& path() const { return path_; }

  // The file by its handle: a path that leads to it whatever has its own name now.
  std::string alias() const { return "/proc/self/fd/" + std::to_string(handle_); }

  void read(void* to, int64_t count, int64_t from) const {
    auto* place = static_cast<char*>(to);
    while (count > 0) {
      const ssize_t got = pread(handle_, place, static_cast<size_t>(count), from);
      if (got < 0 && errno == EINTR) continue;
      if (got <= 0) fail(code_, "cannot read " + path_ + ": " + (got ? std::strerror(errno) : "it became shorter"));
      place += got, from += got, count -= got;
    }
  }

  std::string text(int64_t most) const {
    if (size_ > most)
      fail(code_, path_ + " has " + std::to_string(size_) + " bytes, allowed: " + std::to_string(most));
    std::string content(static_cast<size_t>(size_), '\0');
    read(&content[0], size_, 0);
    return content;
  }

  // In pieces that stay in the cache: hashing a model takes none of the memory that its run will.
  std::string sha256() const {
    Sha256 hash;
    char piece[1 << 12];
    for (int64_t at = 0; at < size_; at += sizeof piece) {
      const int64_t count = std::min<int64_t>(sizeof piece, size_ - at);
      read(piece, count, at);
      hash.add(piece, static_cast<size_t>(count));
    }
    return hash.hex();
  }

  const char* map() const {  // not an empty one
    void* mapped = mmap(nullptr, static_cast<size_t>(size_), PROT_READ, MAP_PRIVATE, handle_, 0);
    if (mapped == MAP_FAILED) fail(code_, "cannot map " + path_ + ": " + std::strerror(errno));
    return static_cast<const char*>(mapped);
  }

 private:
  void close() {
    if (handle_ >= 0) ::close(handle_);
  }

  [[noreturn]] void refuse(const std::string& message) {
    close();
    fail(code_, message + (code_ == kModel ? "; unpack the bundle again" : ""));
  }

  std::string path_;
  Exit code_;
  int handle_ = -1;
  int64_t size_ = 0;
};

}  // namespace edgevit

#endif  // EDGEVIT_FILE_H_
