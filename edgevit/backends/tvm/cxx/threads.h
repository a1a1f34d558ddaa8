// How many threads a run has: the calling one, and others that the model's library starts.
#ifndef EDGEVIT_THREADS_H_
#define EDGEVIT_THREADS_H_

#include <sched.h>

#include <algorithm>
#include <cstdint>
#include <string>

#include "error.h"
#include "process.h"

namespace edgevit {

// How many threads a run has, of those that the library was compiled for: as many as are asked for, else at most one for
// every CPU that this process may use, for threads that wait for each other look for work all the time.
inline int64_t count_threads(int64_t compiled, int64_t asked) {
  const cpu_set_t usable = usable_cpus();
  const int64_t cpus = CPU_COUNT(&usable);
  if (asked > compiled)
    fail(kUsage, "the kernels are shared out among " + std::to_string(compiled) + ", got --threads " +
                     std::to_string(asked) + "; give fewer, or build for a target with more");
  if (asked > cpus)
    fail(kUsage, "this process may use " + std::to_string(cpus) + (cpus == 1 ? " CPU" : " CPUs") + ", got --threads " +
                     std::to_string(asked) + "; give fewer");
  return asked ? asked : std::min(compiled, cpus);
}

}  // namespace edgevit

#endif  // EDGEVIT_THREADS_H_
