/* @TITLE@: the library behind MODEL.h. Kernels are in an object of their own. */
#include "MODEL.h"

#include <string.h>

/* What kernels take: a buffer with its shape, and a list of these; their layout is DLPack's and TVM's. */
typedef struct {
  void *data;
  int32_t device, device_id, axes;
  uint8_t code, bits;
  uint16_t lanes;
  const int64_t *shape, *strides;
  uint64_t offset;
} tensor;

typedef struct {
  int32_t kind;
  uint32_t unused;
  union {
    const tensor *buffer;
    int64_t number;
  } value;
} any;

typedef int kernel(void *self, const any *arguments, int32_t count, any *result);

enum { CPU = 1, A_TENSOR = 7, UNSIGNED = 1, SIGNED = 0, FLOAT = 2 };

/* Where a buffer lies: outside, at an offset of the memory, or of the weights. */
enum place { OUTSIDE, INSIDE, WEIGHTS };

typedef struct {
  enum place place;
  uint64_t offset;
  uint8_t code, bits, axes;
  const int64_t *shape;
} described;

@TABLES@
#define WEIGHTS_HEAD @HEAD@u
#define WEIGHTS_SUM UINT64_C(@SUM@)

struct model_state {
  model_listener listener;
  void *context;
@POOL_STATE@  tensor buffers[BUFFERS];
};

typedef char state_fits[sizeof(struct model_state) <= STATE_BYTES ? 1 : -1];

/* Kernels tell what is wrong with what they were given; here only that something is. */
void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count);
void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count) {
  (void)kind;
  (void)parts;
  (void)count;
}

static void tell(const model_state *model, int begins, const char *name, const tensor *const *given, int count) {
  int index = -1;
  if (model->listener == NULL) return;
  for (int i = 0; i < count && index < 0; ++i)
    if (given[i] - model->buffers >= WEIGHTS_BEGIN) index = (int)(given[i] - model->buffers) - WEIGHTS_BEGIN;
  model->listener(model->context, begins, name, index);
}

/* Return 0, and in `open` what a gate's kernel decided. */
static int call(model_state *model, kernel *function, const char *name, const tensor *const *given, int count, int *open) {
  any arguments[MOST_ARGUMENTS], result = {0, 0, {NULL}};
  int fault;
  for (int i = 0; i < count; ++i) {
    arguments[i].kind = A_TENSOR;
    arguments[i].unused = 0;
    arguments[i].value.buffer = given[i];
  }
  tell(model, 1, name, given, count);
  fault = function(NULL, arguments, count, &result);
  tell(model, 0, name, given, count);
  if (open != NULL) *open = result.value.number != 0;
  return fault;
}

#define BUFFERS_OF(...) ((const tensor *const[]){__VA_ARGS__})
#define COUNT_OF(...) ((int)(sizeof BUFFERS_OF(__VA_ARGS__) / sizeof(const tensor *)))
#define CALL(name, ...) call(model, __tvm_ffi_##name, #name, BUFFERS_OF(__VA_ARGS__), COUNT_OF(__VA_ARGS__), NULL)
#define GATE(name, ...) call(model, __tvm_ffi_##name, #name, BUFFERS_OF(__VA_ARGS__), COUNT_OF(__VA_ARGS__), &open)
#define BEGIN(name, ...) tell(model, 1, name, BUFFERS_OF(__VA_ARGS__), COUNT_OF(__VA_ARGS__))
#define END(name, ...) tell(model, 0, name, BUFFERS_OF(__VA_ARGS__), COUNT_OF(__VA_ARGS__))

@FUNCTIONS@
/* FNV-1a of the first bytes: enough to tell another model's weights, not to find damage. */
static uint64_t sum(const unsigned char *bytes, size_t count) {
  uint64_t value = UINT64_C(0xcbf29ce484222325);
  for (size_t i = 0; i < count; ++i) value = (value ^ bytes[i]) * UINT64_C(0x100000001b3);
  return value;
}

static int misplaced(const void *address) { return (uintptr_t)address % MODEL_ALIGN_BYTES != 0; }

@CPU@
const char *model_version(void) { return MODEL_VERSION; }

size_t model_size(void) { return MODEL_MEMORY_BYTES; }

const char *model_message(int status) {
  switch (status) {
    case MODEL_OK: return "done";
    case MODEL_NULL: return "a pointer that must not be NULL is NULL";
    case MODEL_ALIGNMENT: return "memory, weights and image must begin at multiples of 64 bytes";
    case MODEL_MEMORY: return "less memory than the model needs";
    case MODEL_WEIGHTS: return "these are not this model's weights";
    case MODEL_EFFORT: return "the effort must be a number";
    case MODEL_FAULT: return "a kernel refused what it was given; the model's memory was overwritten";
    case MODEL_CPU: return "this CPU lacks instructions that the library was compiled for";
    case MODEL_THREADS: return "so many threads cannot be had";
    default: return "no status of this library";
  }
}

int model_init(model_state **model, void *memory, size_t size, const void *weights, size_t weights_bytes) {
  model_state *made;
  if (model == NULL || memory == NULL || weights == NULL) return MODEL_NULL;
  if (misplaced(memory) || misplaced(weights)) return MODEL_ALIGNMENT;
  if (size < MODEL_MEMORY_BYTES) return MODEL_MEMORY;
  if (!cpu_suffices()) return MODEL_CPU;
  if (weights_bytes != MODEL_WEIGHTS_BYTES || sum(weights, WEIGHTS_HEAD) != WEIGHTS_SUM) return MODEL_WEIGHTS;
  made = memory;
  memset(made, 0, sizeof *made);
  for (int i = 0; i < BUFFERS; ++i) {
    const described *from = &buffers[i];
    tensor *to = &made->buffers[i];
    if (from->place == INSIDE) to->data = (unsigned char *)memory + from->offset;
    /* Kernels do not write to weights. */
    if (from->place == WEIGHTS) to->data = (unsigned char *)(uintptr_t)weights + from->offset;
    to->device = CPU;
    to->axes = from->axes;
    to->code = from->code;
    to->bits = from->bits;
    to->lanes = 1;
    to->shape = from->shape;
  }
@START@  *model = made;
  return MODEL_OK;
}

int model_run(model_state *model, const uint8_t *image, float effort, float *logits, uint8_t *gates) {
  if (model == NULL || image == NULL) return MODEL_NULL;
  if (misplaced(image)) return MODEL_ALIGNMENT;
  if (effort != effort) return MODEL_EFFORT;
  model->buffers[IMAGE].data = (unsigned char *)(uintptr_t)image; /* which kernels do not write to */
  memcpy(model->buffers[EFFORT].data, &effort, sizeof effort);
@BEFORE@  if (run(model)) return MODEL_FAULT;
  if (logits != NULL) memcpy(logits, model->buffers[LOGITS].data, MODEL_CLASSES * sizeof *logits);
  if (gates != NULL && MODEL_BRANCHES) memcpy(gates, model->buffers[GATES].data, MODEL_BRANCHES);
  return MODEL_OK;
}

void model_listen(model_state *model, model_listener listener, void *context) {
  model->listener = listener;
  model->context = context;
}
@MORE@