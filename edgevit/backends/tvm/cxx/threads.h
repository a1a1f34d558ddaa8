// How many threads a run has: the calling one, and the others of the runtime's pool.
#ifndef EDGEVIT_THREADS_H_
#define EDGEVIT_THREADS_H_

#include <sched.h>
#include <tvm/ffi/container/array.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/string.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "error.h"
#include "process.h"

// Of libtvm_runtime.so too: runs a function once in every thread of the pool.
extern "C" int TVMBackendParallelLaunch(int (*work)(int task, void* group, void* data), void* data, int tasks);

namespace tvm::runtime::threading {
void SetMaxConcurrency(int value);  // Of this thread; libtvm_runtime.so has it, no header that it comes with does.
}

namespace edgevit {

// Touch more of this thread's stack than any kernel needs: what a run is then seen to touch is what it was given.
inline int touch_stack(int, void*, void*) {
  volatile char pages[1 << 14];
  for (size_t i = 0; i < sizeof pages; i += 1 << 10) pages[i] = 0;
  return 0;
}

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

// Let kernels use so many threads; for one the runtime starts none and computes the parts of a kernel in turn.
inline void use_threads(int64_t count) {
  tvm::runtime::threading::SetMaxConcurrency(static_cast<int>(count));
  if (count == 1) return;
  // Idle threads look for work about a millisecond long before they sleep; by default they do for a tenth of a second.
  setenv("TVM_THREAD_POOL_SPIN_COUNT", "3000", 0);
  const cpu_set_t held = usable_cpus();
  tvm::ffi::Array<tvm::ffi::String> cpus;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
    if (CPU_ISSET(cpu, &held)) cpus.push_back(std::to_string(cpu));
  const auto found = tvm::ffi::Function::GetGlobalRequired("runtime.NumThreads");
  found();  // Starts the pool, every thread bound to a CPU, whichever this process may use: let all have all of those.
  constexpr int kShareAll = -3;
  tvm::ffi::Function::GetGlobalRequired("runtime.config_threadpool")(kShareAll, static_cast<int>(count), cpus);
  tvm::runtime::threading::SetMaxConcurrency(static_cast<int>(count));  // Now it is the number of CPUs.
  const int threads = found().cast<int>();
  if (threads != count)
    fail(kRuntime, "the runtime has " + std::to_string(threads) + " threads, not " + std::to_string(count));
  TVMBackendParallelLaunch(touch_stack, nullptr, 0);
}

}  // namespace edgevit

#endif  // EDGEVIT_THREADS_H_
