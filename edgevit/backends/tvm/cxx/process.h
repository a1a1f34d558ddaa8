// This process: its clock, its memory, the CPUs it may use, and whether an emulator plays the machine.
#ifndef EDGEVIT_PROCESS_H_
#define EDGEVIT_PROCESS_H_

#include <dlfcn.h>
#include <malloc.h>
#include <sched.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "error.h"

namespace edgevit {

inline std::string link_of(const std::string& path) {  // empty where there is none
  char target[4096];
  const ssize_t length = readlink(path.c_str(), target, sizeof target);
  return length > 0 ? std::string(target, static_cast<size_t>(length)) : "";
}

// Whether the program that the kernel runs is another one than the program it is told to be: an emulator names its guest
// at /proc/self/exe, and is named itself under a thread of it. No name is looked at, for a user chooses those.
inline bool emulated() {
  static const bool found = [] {
    const std::string shown = link_of("/proc/self/exe");
    for (const std::string& path : {std::string("/proc/thread-self/exe"),
                                    "/proc/self/task/" + std::to_string(getpid()) + "/exe"}) {
      const std::string run = link_of(path);
      if (!run.empty() && !shown.empty() && run != shown) return true;
    }
    return false;
  }();
  return found;
}

// A system call that no kernel knows: what counts instructions in an emulator hears it (edgevit/devices/qemu/count.c).
constexpr long kMark = 0x7ffe;
enum Mark { kBegin = 1, kEnd = 2 };
inline void mark(Mark what) {
  if (emulated()) syscall(kMark, what);
}

// Streams of the C++ library would bring in tables for every language, a megabyte of them.
template <typename Function>
void each_line(const char* path, Function told) {
  std::FILE* file = std::fopen(path, "r");
  if (!file) return;
  char* line = nullptr;
  size_t room = 0;
  while (getline(&line, &room, file) > 0) told(std::string(line));
  std::free(line);
  std::fclose(file);
}

inline int64_t told_bytes(const char* path, const std::string& field) {  // 0 where the system does not tell it
  int64_t found = 0;
  each_line(path, [&](const std::string& line) {
    if (!found && !line.compare(0, field.size(), field)) found = 1024 * std::atoll(line.c_str() + field.size());
  });
  return found;
}

// The kernel counts pages per core and adds them up late, so a later peak may be told lower than an earlier one.
inline int64_t peak_bytes() {
  static int64_t most = 0;
  return most = std::max(most, told_bytes("/proc/self/status", "VmHWM:"));
}

inline int64_t resident_bytes() { return told_bytes("/proc/self/status", "VmRSS:"); }

// Memory of this process that is in no file: what it allocated and touched.
inline int64_t anonymous_bytes() { return told_bytes("/proc/self/smaps_rollup", "Anonymous:"); }

// What is resident, by whose it is: the model's weights and code, this program's, the system's libraries
// (which every other program shares), and what is in no file or was written to (heap and stack). Zeros: not told.
struct Resident {
  int64_t weights = 0, model = 0, runtime = 0, system = 0, own = 0;
};

inline Resident resident() {
  Resident found;
  int64_t Resident::*kind = &Resident::own;
  int64_t pages = 0;
  each_line("/proc/self/smaps", [&](const std::string& line) {
    if (line[0] < 'A' || line[0] > 'Z') {  // a mapping begins: address, rights, offset, device, inode, path
      const size_t slash = line.rfind('/');
      const std::string name = slash == std::string::npos ? "" : line.substr(slash + 1, line.size() - slash - 2);
      kind = &Resident::system;
      if (name.empty()) kind = &Resident::own;
      if (name == "model.weights") kind = &Resident::weights;
      if (name == "model.so") kind = &Resident::model;
      if (name == "runner") kind = &Resident::runtime;
    } else if (!line.compare(0, 4, "Rss:")) {
      pages = 1024 * std::atoll(line.c_str() + 4);
    } else if (!line.compare(0, 10, "Anonymous:")) {
      const int64_t written = 1024 * std::atoll(line.c_str() + 10);
      found.own += written;
      found.*kind += pages - written;
    }
  });
  return found;
}

// The accountant of the heap, edgevit/devices/qemu/heap.c, where it is preloaded: 1 asks for the most held since 2 began anew.
enum Ask { kMost = 1, kBeginAnew = 2 };
using Accountant = size_t (*)(int);
inline Accountant accountant() {
  static const auto found = reinterpret_cast<Accountant>(dlsym(RTLD_DEFAULT, "edgevit_heap"));
  return found;
}
inline int64_t heap_bytes(Ask what) { return accountant() ? static_cast<int64_t>(accountant()(what)) : 0; }

inline void keep_what_is_freed() {
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, std::numeric_limits<int>::max());
}

// Gives the system what a decoded picture took, before the model's pages come.
inline void give_back() {
#ifdef __GLIBC__
  malloc_trim(0);
#endif
}

// Pages of files that nothing was written to: code that only starting or printing needs, and weights after a run. Let go,
// those that are needed again come back from the file, and do not add up to the most that is held.
class UnwrittenPages {
 public:
  void find() {
    if (emulated()) return;
    Mapping now{};
    each_line("/proc/self/smaps", [&](const std::string& line) {
      char rights[5] = "";
      unsigned long begin = 0, end = 0;
      if (std::sscanf(line.c_str(), "%lx-%lx %4s", &begin, &end, rights) == 3)
        now = {begin, end, rights[1] == '-' && line.find('/') != std::string::npos};
      else if (now.file && !line.compare(0, 10, "Anonymous:") && !std::atoll(line.c_str() + 10))
        found_.push_back(now);
    });
  }

  void let_go() const {
    for (const Mapping& each : found_)  // where the system does not do it, they stay
      static_cast<void>(madvise(reinterpret_cast<void*>(each.begin), each.end - each.begin, MADV_DONTNEED));
  }

 private:
  struct Mapping {
    unsigned long begin, end;
    bool file;
  };
  std::vector<Mapping> found_;
};

struct Time {
  double wall_ms, cpu_ms;  // the second of all threads of this process
};

inline Time now() {
  timespec wall{}, cpu{};
  clock_gettime(CLOCK_MONOTONIC, &wall);
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu);
  return {wall.tv_sec * 1e3 + wall.tv_nsec * 1e-6, cpu.tv_sec * 1e3 + cpu.tv_nsec * 1e-6};
}

inline cpu_set_t usable_cpus() {
  cpu_set_t held;
  if (sched_getaffinity(0, sizeof held, &held)) fail(kRuntime, "the system does not tell which CPUs may be used");
  return held;
}

inline void hold_to(const std::vector<int>& cpus) {
  const cpu_set_t usable = usable_cpus();
  cpu_set_t chosen;
  CPU_ZERO(&chosen);
  for (const int cpu : cpus) {
    if (!CPU_ISSET(cpu, &usable))  // The system would leave it out without a word.
      fail(kUsage, "this process may not use CPU " + std::to_string(cpu) + ", which --cpus names; it may use " +
                       std::to_string(CPU_COUNT(&usable)) + " of them");
    CPU_SET(cpu, &chosen);
  }
  if (sched_setaffinity(0, sizeof chosen, &chosen))
    fail(kUsage, std::string("the system does not hold this process to --cpus: ") + std::strerror(errno));
}

}  // namespace edgevit

#endif  // EDGEVIT_PROCESS_H_
