/* What a program that loads a library by its file asks it for; see plugin.h. */
#include "plugin.h"

#include "MODEL.h"

static int init(void **model, void *memory, size_t size, const void *weights, size_t weights_bytes) {
  model_state *made = NULL;
  const int status = model_init(&made, memory, size, weights, weights_bytes);
  *model = made;
  return status;
}

static int run(void *model, const uint8_t *image, float effort, float *logits, uint8_t *gates) {
  return model_run(model, image, effort, logits, gates);
}

static void listen(void *model, edgevit_listener listener, void *context) { model_listen(model, listener, context); }
@MORE@
extern const edgevit_library edgevit_model;
const edgevit_library edgevit_model = {
    EDGEVIT_LIBRARY, @POOLED@, MODEL_MEMORY_BYTES, @ARENA@, MODEL_WEIGHTS_BYTES, MODEL_IMAGE_BYTES,
    MODEL_CLASSES, MODEL_BRANCHES, @POINTS@, model_version, model_message,
    init, run, @TOKENS@, @START@, listen};
