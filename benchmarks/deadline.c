/* Run a model on a sequence of images three times each: dense, at the least effort, and with the loop of deadline.h.
 *
 *   ./deadline model.weights images.raw SHARE FIRST LEAST MOST
 *
 * images.raw holds images of MODEL_IMAGE_BYTES one after another. The first FIRST of them are run densely, and SHARE of
 * the median of their times is the deadline, which is the first line; they are not of the sequence. Then a line for each
 * image: the milliseconds of the three runs, the effort of the loop, patch tokens after the last point of the three runs
 * (branches that ran, where no tokens are merged), and whether the loop's class is that of the dense run. A millisecond
 * is one of this thread's CPU time.
 */
#define _POSIX_C_SOURCE 200809L

#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "MODEL.h"
#include "deadline.h"

#define MOST_FIRST 1024

typedef struct {
  double ms;
  int work, best;
} answer;

static unsigned char memory[MODEL_MEMORY_BYTES] __attribute__((aligned(MODEL_ALIGN_BYTES)));
static unsigned char image[MODEL_IMAGE_BYTES] __attribute__((aligned(MODEL_ALIGN_BYTES)));
static float logits[MODEL_CLASSES];
static unsigned char gates[MODEL_BRANCHES + 1];

static double now_ms(void) {
  struct timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return 1e3 * (double)now.tv_sec + 1e-6 * (double)now.tv_nsec;
}

static void stop(const char *what) {
  fprintf(stderr, "%s\n", what);
  exit(1);
}

static const void *mapped(const char *path) {
  const int file = open(path, O_RDONLY);
  void *found = file < 0 ? MAP_FAILED : mmap(NULL, MODEL_WEIGHTS_BYTES, PROT_READ, MAP_PRIVATE, file, 0);
  if (found == MAP_FAILED) stop(path);
  close(file);
  return found;
}

static answer run(model_state *model, float effort) {
  answer made = {0, 0, 0};
  const double begun = now_ms();
  const int status = model_run(model, image, effort, logits, gates);
  made.ms = now_ms() - begun;
  if (status != MODEL_OK) stop(model_message(status));
  for (int i = 1; i < MODEL_CLASSES; ++i)
    if (logits[i] > logits[made.best]) made.best = i;
#ifdef MODEL_POINTS
  made.work = model_tokens(model)[MODEL_POINTS - 1];
#else
  for (int i = 0; i < MODEL_BRANCHES; ++i) made.work += gates[i];
#endif
  return made;
}

static int order(const void *one, const void *other) {
  const double a = *(const double *)one, b = *(const double *)other;
  return (a > b) - (a < b);
}

/* Return the median time of dense runs of the next images; before them the model is run a few times to warm up. */
static double dense_ms(model_state *model, FILE *images, int first) {
  static double took[MOST_FIRST];
  int warm, i;
  for (i = 0; i < first; ++i) {
    if (fread(image, 1, sizeof image, images) != sizeof image) stop("too few images");
    for (warm = i ? 5 : 0; warm < 5; ++warm) run(model, INFINITY); /* pages of the weights are read once */
    took[i] = run(model, INFINITY).ms;
  }
  qsort(took, (size_t)first, sizeof took[0], order);
  return first % 2 ? took[first / 2] : (took[first / 2 - 1] + took[first / 2]) / 2;
}

int main(int count, char **words) {
  model_state *model;
  const void *weights;
  deadline control;
  FILE *images;
  int status, first;
  if (count != 7) stop("usage: deadline model.weights images.raw SHARE FIRST LEAST MOST");
  first = atoi(words[4]);
  if (first < 1 || first > MOST_FIRST) stop("FIRST is 1 to 1024");
  weights = mapped(words[1]);
  images = fopen(words[2], "rb");
  if (images == NULL) stop(words[2]);
  status = model_init(&model, memory, sizeof memory, weights, MODEL_WEIGHTS_BYTES);
  if (status != MODEL_OK) stop(model_message(status));
  control = deadline_of(atof(words[3]) * dense_ms(model, images, first), strtof(words[5], NULL), strtof(words[6], NULL));
  printf("%.4f\n", control.deadline_ms);
  while (fread(image, 1, sizeof image, images) == sizeof image) {
    answer dense, least, loop;
    const float effort = control.effort;
    dense = run(model, INFINITY);
    least = run(model, control.least);
    loop = run(model, effort);
    deadline_took(&control, loop.ms);
    printf("%.4f %.4f %.4f %.4f %d %d %d %d\n", dense.ms, least.ms, loop.ms, (double)effort, dense.work, least.work,
           loop.work, dense.best == loop.best);
  }
  fclose(images);
  return 0;
}
