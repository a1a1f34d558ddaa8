// Whether a model may run here: all of it is asked before a library is loaded, since loading already executes code.
#ifndef EDGEVIT_MACHINE_H_
#define EDGEVIT_MACHINE_H_

#include <elf.h>
#if defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "file.h"
#include "manifest.h"

namespace edgevit {

#if defined(__x86_64__)
inline constexpr const char* kMachine = "x86_64";
inline constexpr int kElfMachine = EM_X86_64;

inline std::vector<std::pair<std::string, bool>> cpu_flags() {  // Names as in /proc/cpuinfo; the operating system's part too.
  __builtin_cpu_init();
#define EDGEVIT_FLAG(name, gcc) {name, __builtin_cpu_supports(gcc) != 0}
  return {EDGEVIT_FLAG("avx2", "avx2"),         EDGEVIT_FLAG("fma", "fma"),
          EDGEVIT_FLAG("bmi1", "bmi"),          EDGEVIT_FLAG("bmi2", "bmi2"),
          EDGEVIT_FLAG("f16c", "f16c"),         EDGEVIT_FLAG("abm", "lzcnt"),
          EDGEVIT_FLAG("movbe", "movbe"),       EDGEVIT_FLAG("avx_vnni", "avxvnni"),
          EDGEVIT_FLAG("ssse3", "ssse3"),       EDGEVIT_FLAG("sse4_1", "sse4.1"),
          EDGEVIT_FLAG("sse4_2", "sse4.2"),     EDGEVIT_FLAG("popcnt", "popcnt"),
          EDGEVIT_FLAG("avx512f", "avx512f"),   EDGEVIT_FLAG("avx512bw", "avx512bw"),
          EDGEVIT_FLAG("avx512cd", "avx512cd"), EDGEVIT_FLAG("avx512dq", "avx512dq"),
          EDGEVIT_FLAG("avx512vl", "avx512vl"), EDGEVIT_FLAG("avx512_vnni", "avx512vnni")};
#undef EDGEVIT_FLAG
}
#elif defined(__aarch64__)
inline constexpr const char* kMachine = "aarch64";
inline constexpr int kElfMachine = EM_AARCH64;

inline std::vector<std::pair<std::string, bool>> cpu_flags() {  // Names as in /proc/cpuinfo.
  const unsigned long first = getauxval(AT_HWCAP), second = getauxval(AT_HWCAP2);
  return {{"asimd", first & HWCAP_ASIMD},       {"atomics", first & HWCAP_ATOMICS},
          {"fphp", first & HWCAP_FPHP},         {"asimdhp", first & HWCAP_ASIMDHP},
          {"asimdrdm", first & HWCAP_ASIMDRDM}, {"lrcpc", first & HWCAP_LRCPC},
          {"asimddp", first & HWCAP_ASIMDDP},   {"i8mm", second & HWCAP2_I8MM}};
}
#else
#error "there are kernels for x86-64 and aarch64 only"
#endif

inline std::string joined(const std::vector<std::string>& words, const char* between) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : between) + word;
  return text;
}

inline void check_machine(const Manifest& manifest) {
  const auto& machines = manifest.machines;
  if (std::find(machines.begin(), machines.end(), kMachine) == machines.end())
    fail(kModel, "this library is for " + joined(machines, " or ") + ", this runner is for " + kMachine);
  const auto known = cpu_flags();
  std::vector<std::string> lacking;
  for (const std::string& flag : manifest.flags)
    if (std::find(known.begin(), known.end(), std::make_pair(flag, true)) == known.end()) lacking.push_back(flag);
  if (!lacking.empty())
    fail(kModel,
         "this library needs a CPU with " + joined(lacking, " ") + "; build for a target that this CPU can run");
}

inline void check_library(const File& file) {
  Elf64_Ehdr header{};
  file.read(&header, std::min<int64_t>(sizeof header, file.size()), 0);
  if (std::memcmp(header.e_ident, ELFMAG, SELFMAG) || header.e_type != ET_DYN)
    fail(kModel, file.path() + " is not a shared library; unpack the bundle again");
  if (header.e_ident[EI_CLASS] != ELFCLASS64 || header.e_machine != kElfMachine)
    fail(kModel, file.path() + " is for another architecture (ELF machine " + std::to_string(header.e_machine) +
                     "), this runner is for " + kMachine);
}

}  // namespace edgevit

#endif  // EDGEVIT_MACHINE_H_
