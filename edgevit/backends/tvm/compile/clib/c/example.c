/* Run a model on images: raw uint8 RGB, MODEL_WIDTH x MODEL_HEIGHT pixels, row by row. Prints the five likeliest classes.
 *
 *   cc -std=c99 -O2 -I lib lib/example.c lib/lib@NAME@.a -o ../example      in the bundle's folder
 *   ../example model.weights ../image.raw [effort]
 */
#define _POSIX_C_SOURCE 200809L

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "MODEL.h"

static unsigned char memory[MODEL_MEMORY_BYTES] __attribute__((aligned(MODEL_ALIGN_BYTES)));
static unsigned char image[MODEL_IMAGE_BYTES] __attribute__((aligned(MODEL_ALIGN_BYTES)));
static float logits[MODEL_CLASSES];
static unsigned char gates[MODEL_BRANCHES + 1];

static int failed(const char *what) {
  fprintf(stderr, "%s: %s\n", what, errno ? strerror(errno) : "it has another size than this model takes");
  return 1;
}

/* Pages of the weights are read when a branch first needs them, and belong to the file. */
static const void *mapped(const char *path) {
  const int file = open(path, O_RDONLY);
  void *found;
  if (file < 0) return NULL;
  errno = 0;
  found = lseek(file, 0, SEEK_END) == MODEL_WEIGHTS_BYTES
              ? mmap(NULL, MODEL_WEIGHTS_BYTES, PROT_READ, MAP_PRIVATE, file, 0)
              : MAP_FAILED;
  close(file);
  return found == MAP_FAILED ? NULL : found;
}

int main(int count, char **words) {
  model_state *model;
  const void *weights;
  FILE *file;
  char *rest = NULL;
  float effort;
  int status;
  if (count < 3) {
    fprintf(stderr, "usage: %s model.weights image.raw [effort]\n", words[0]);
    return 2;
  }
  effort = count > 3 ? strtof(words[3], &rest) : 0.0f;
  if (count > 3 && (rest == words[3] || *rest != '\0')) {
    fprintf(stderr, "the effort is no number: %s\n", words[3]);
    return 2;
  }
  if (strcmp(model_version(), MODEL_VERSION) != 0) {
    fprintf(stderr, "the library is %s, its header %s\n", model_version(), MODEL_VERSION);
    return 1;
  }
  weights = mapped(words[1]);
  if (weights == NULL) return failed(words[1]);
  errno = 0;
  file = fopen(words[2], "rb");
  if (file == NULL || fread(image, 1, sizeof image, file) != sizeof image || fgetc(file) != EOF) return failed(words[2]);
  fclose(file);
  status = model_init(&model, memory, sizeof memory, weights, MODEL_WEIGHTS_BYTES);
  if (status == MODEL_OK) status = model_run(model, image, effort, logits, gates);
  if (status != MODEL_OK) {
    fprintf(stderr, "%s\n", model_message(status));
    return 1;
  }
  for (int place = 0; place < 5 && place < MODEL_CLASSES; ++place) {
    int best = 0;
    for (int i = 1; i < MODEL_CLASSES; ++i)
      if (logits[i] > logits[best]) best = i;
    printf("class %d: %.9g\n", best, (double)logits[best]);
    logits[best] = -1e38f;
  }
  for (int i = 0; i < MODEL_BRANCHES; ++i) printf("%d%s", gates[i], i + 1 < MODEL_BRANCHES ? " " : " (branches that ran)\n");
  return 0;
}
