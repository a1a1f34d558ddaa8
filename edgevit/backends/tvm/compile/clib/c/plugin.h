/* How a program uses such a library that it loads by its file: the shared one has a symbol `edgevit_model` of this type. */
#ifndef EDGEVIT_PLUGIN_H_
#define EDGEVIT_PLUGIN_H_

#include <stddef.h>
#include <stdint.h>

#define EDGEVIT_LIBRARY 1 /* of what is below */

typedef void (*edgevit_listener)(void *context, int begins, const char *name, int weights);

typedef struct {
  uint32_t library, threads;
  uint64_t memory_bytes, arena_bytes, weights_bytes, image_bytes;
  uint32_t classes, branches, points;
  const char *(*version)(void);
  const char *(*message)(int status);
  int (*init)(void **model, void *memory, size_t size, const void *weights, size_t weights_bytes);
  int (*run)(void *model, const uint8_t *image, float effort, float *logits, uint8_t *gates);
  const int32_t *(*tokens)(const void *model); /* patch tokens left after each of `points`, or NULL */
  int (*start)(void *model, int threads);      /* NULL where kernels are not shared out */
  void (*listen)(void *model, edgevit_listener listener, void *context);
} edgevit_library;

#endif /* EDGEVIT_PLUGIN_H_ */
