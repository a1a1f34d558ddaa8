/* @TITLE@
 *
 * Written by edgevit in C99, for @MACHINE@.
 * It takes no memory, opens no file and starts no thread@UNLESS@: memory and weights are the caller's.
 * What is stated in bytes is exact; a run uses nothing else but at most @STACK@ of stack.
 *
 *   static _Alignas(64) unsigned char memory[MODEL_MEMORY_BYTES];     in C99: __attribute__((aligned(64)))
 *   model_state *model;
 *   int status = model_init(&model, memory, sizeof memory, weights, MODEL_WEIGHTS_BYTES);
 *   if (status == MODEL_OK) status = model_run(model, image, 0.0f, logits, gates);
 *
 * `weights` is the file model.weights, mapped or read, or what @NAME@_weights.S makes of it: an object to link.
 * Threads may run at the same time, each with a memory of its own; weights are only read.
 */
#ifndef MODEL_H_
#define MODEL_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MODEL_VERSION "@VERSION@" /* of edgevit and of this model: compare it with model_version() */

#define MODEL_HEIGHT @HEIGHT@
#define MODEL_WIDTH @WIDTH@
#define MODEL_IMAGE_BYTES @IMAGE_BYTES@ /* uint8 RGB, row by row; no normalisation, that is inside */
#define MODEL_CLASSES @CLASSES@
#define MODEL_BRANCHES @BRANCHES@
@POINTS@#define MODEL_MEMORY_BYTES @MEMORY_BYTES@
#define MODEL_WEIGHTS_BYTES @WEIGHTS_BYTES@
#define MODEL_ALIGN_BYTES 64 /* where memory, weights and image must begin: at a multiple of it */

enum model_status {
  MODEL_OK = 0,
  MODEL_NULL = 1,      /* a pointer that must not be NULL is */
  MODEL_ALIGNMENT = 2, /* memory, weights or image do not begin at a multiple of MODEL_ALIGN_BYTES */
  MODEL_MEMORY = 3,    /* less memory than MODEL_MEMORY_BYTES */
  MODEL_WEIGHTS = 4,   /* weights of another size, or another model's */
  MODEL_EFFORT = 5,    /* the effort is not a number */
  MODEL_FAULT = 6,     /* a kernel refused what it was given: the memory was overwritten */
  MODEL_CPU = 7,       /* this CPU lacks instructions that the library was compiled for */
  MODEL_THREADS = 8    /* so many threads cannot be had */
};

typedef struct model_state model_state; /* lies in the memory that model_init was given */

/* Return MODEL_VERSION as it was when the library was compiled. */
const char *model_version(void);

/* Return in English what a status says. */
const char *model_message(int status);

/* Return MODEL_MEMORY_BYTES as it was when the library was compiled. */
size_t model_size(void);

/* Make `memory` a model and put it into `model`. Memory and weights must stay where they are as long as it is used. */
int model_init(model_state **model, void *memory, size_t size, const void *weights, size_t weights_bytes);

/* Run one image.
 *
 * image:  MODEL_IMAGE_BYTES, which nothing may write to meanwhile.
 * effort: added to every gate's logit: 0 as calibrated, INFINITY opens all gates, -INFINITY closes them.
 * logits: room for MODEL_CLASSES numbers, or NULL.
 * gates:  room for MODEL_BRANCHES bytes, 1 where the branch ran, or NULL.
 */
int model_run(model_state *model, const uint8_t *image, float effort, float *logits, uint8_t *gates);
@TOKENS@@THREADS@
/* Let `listener` hear of every call inside a run, before it (`begins` 1) and after it (0), with its name and the index of
 * the weights it reads (-1: none); NULL ends that. To find out where time goes.
 */
typedef void (*model_listener)(void *context, int begins, const char *name, int weights);
void model_listen(model_state *model, model_listener listener, void *context);

#ifdef __cplusplus
}
#endif

#endif /* MODEL_H_ */
