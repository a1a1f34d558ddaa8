// How everything that fails is told: an exit code, and what happened.
#ifndef EDGEVIT_ERROR_H_
#define EDGEVIT_ERROR_H_

#include <string>

namespace edgevit {

enum Exit { kDone = 0, kFault = 1, kUsage = 2, kImage = 15, kOutput = 16, kRuntime = 18, kModel = 19 };

struct Failure {
  Exit code;
  std::string message;
};

[[noreturn]] inline void fail(Exit code, const std::string& message) { throw Failure{code, message}; }

}  // namespace edgevit

#endif  // EDGEVIT_ERROR_H_
