// Run one compiled model on images: the twin of runner/run.py for a device without Python.
//
//   runner FOLDER IMAGE... [--effort NAME|X] [--top K] [--json] [--runs N] [--threads N] [--cpus LIST] [--trace]
//   runner FOLDER - [--top K] [--trace]
//   runner FOLDER IMAGES --plan FILE [--top K] [--trace]
//   runner --help
//
// FOLDER holds model.so, model.weights and model.json, and of a bundle manifest.json and what that names. Pictures are
// decoded, resized and cropped as manifest.json says, and answered as runner/run.py does. With - raw images come over
// standard input until it ends, each behind its own effort, a float32, and each is answered by a line of JSON; --trace
// adds every call inside the run to it: how deep, its name, whose weights it was given (their index, or -1), its time, and
// in the first run, by how many bytes the process had grown after it. With --plan, IMAGES is raw images one behind the
// other, and FILE has a line per run, `INDEX EFFORT`; the first line of the answer tells of loading, and one follows per
// run. --cpus 0,2 holds the process to CPUs; --threads takes fewer threads than the library was compiled for.
//
// What is checked: size and SHA-256 of model.so and model.weights against model.json, of that and labels.json against
// manifest.json, and the two against digests in themselves, all before anything is mapped or loaded; and everything else
// that can be, since loading already executes code. This finds damage and files that were exchanged. It does not find
// somebody who writes all of them anew: whether manifest.json is the one that was built, its signature tells.
//
// Needs glibc and libgcc. To compile: g++ -std=c++17 -O2 -ffp-contract=off -static-libstdc++ runner.cc -ldl -o runner
//
// Exit codes: 0 done, 1 a fault inside the model, 2 wrong usage, 15 an image or plan, 16 the answer cannot be written,
// 18 the runtime, 19 the model's files or this machine.
#include <cerrno>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <new>
#include <string>
#include <vector>

#include "answer.h"
#include "bundle.h"
#include "file.h"
#include "image.h"
#include "list.h"
#include "options.h"
#include "plan.h"
#include "process.h"
#include "session.h"

namespace edgevit {

// Runs the images that can be read, and returns how it ended. The library is loaded for the first of them.
Exit run_images(const Options& options, Session& session) {
  const Bundle bundle(options.folder, session.manifest);
  if (!bundle.steered && (options.effort != 0 || !options.point.empty()))
    fail(kUsage, "this bundle runs the same for every image, so it takes no effort; omit --effort");
  session.effort = options.point.empty() ? options.effort : bundle.effort(options.point);
  Exit status = kDone;
  bool loaded = false;
  for (const std::string& path : listed(options.images)) {
    try {
      read_image(path, session.manifest, bundle, session.image);
    } catch (const Failure& failure) {
      if (failure.code != kImage) throw;
      std::fprintf(stderr, "error: %s\n", shown(failure.message).c_str());
      status = kImage;
      continue;
    }
    give_back();
    if (!loaded) session.load(options.trace, options.trace);
    loaded = true;
    std::vector<Time> times;
    for (int64_t i = 0; i < options.runs; ++i) times.push_back(session.run());
    session.let_go();  // of the weights, before printing needs pages of its own
    const Costs costs = session.costs(times);
    (options.json ? print_json : print_text)(options, path, session.manifest, bundle, session.answer(), costs);
    written();
  }
  return status;
}

void answer(const Options& options, Session& session) {
  const Time time = session.run();
  print_line(options, session.manifest, session.answer(), session.costs({time}));
  written();
}

void run_stream(const Options& options, Session& session) {
  session.load(options.trace, true);
  const auto bytes = static_cast<size_t>(session.image_bytes());
  while (const size_t begun = std::fread(&session.effort, 1, sizeof(float), stdin)) {
    if (begun != sizeof(float) || std::fread(session.image, 1, bytes, stdin) != bytes)
      fail(kImage, "standard input ended inside an image of " + std::to_string(bytes) + " bytes");
    if (std::isnan(session.effort)) fail(kImage, "an effort must be a number, got nan");
    answer(options, session);
  }
  if (std::ferror(stdin)) fail(kImage, std::string("cannot read standard input: ") + std::strerror(errno));
}

void run_plan(const Options& options, Session& session) {
  const File images(options.images[0], kImage);
  const std::vector<Step> steps = read_plan(options.plan, images, session.image_bytes());
  session.load(options.trace, true);
  std::printf("{\"load_ms\": %.4f, \"started_bytes\": %lld, \"loaded_bytes\": %lld}\n", session.load_ms,
              static_cast<long long>(session.started), static_cast<long long>(session.loaded));
  for (const Step& step : steps) {
    images.read(session.image, session.image_bytes(), step.index * session.image_bytes());
    session.effort = step.effort;
    answer(options, session);
  }
}

Exit run(const Options& options) {
  Exit status = kDone;
  if (options.help) {
    std::printf("%s\n%s", kUsageLine, kHelp);
    return written(), status;
  }
  if (!options.cpus.empty()) hold_to(options.cpus);
  Session session(options);
  if (!options.plan.empty()) run_plan(options, session);
  else if (options.streamed()) run_stream(options, session);
  else status = run_images(options, session);
  return written(), status;
}

}  // namespace edgevit

int main(int count, char** arguments) {
  try {
    return edgevit::run(edgevit::parse(count, arguments));
  } catch (const edgevit::Failure& failure) {
    std::fprintf(stderr, "error: %s\n", failure.message.c_str());
    return failure.code;
  } catch (const std::bad_alloc&) {
    std::fprintf(stderr, "error: no memory\n");
    return edgevit::kRuntime;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return edgevit::kFault;
  }
}
