/* Run the model of this bundle on an image: raw uint8 RGB, {{ m.input.shape[2] }} x {{ m.input.shape[1] }} pixels, row by row.
 * Prints the five likeliest classes. Built by the CMakeLists.txt beside it; takes the bundle's folder and the image:
 *
 *   ../build/example . ../image.raw{{ " [effort]" if m.effort }}
 *
 * C has no switch for one setting that the memory bound was proven with (enable_mem_reuse): the bound is runner/run.py's.
 */
#define _POSIX_C_SOURCE 200809L

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "onnxruntime_c_api.h"

{% set logits = m.outputs | selectattr("name", "equalto", "logits") | first %}
enum { IMAGE = {{ m.input.shape[1] * m.input.shape[2] * 3 }}, CLASSES = {{ logits.shape[-1] }}, BRANCHES = {{ m.branches | length }}, INPUTS = {{ 2 if m.effort else 1 }}, OUTPUTS = 2 };

static const char *const VERIFIED = "{{ m.tools.onnxruntime.split("+")[0] }}";
static unsigned char image[IMAGE];

static const OrtApi *ort;

/* End with what ONNX Runtime says, unless it says nothing. */
static void check(OrtStatus *status) {
  if (status == NULL) return;
  fprintf(stderr, "%s\n", ort->GetErrorMessage(status));
  ort->ReleaseStatus(status);
  exit(1);
}

{% if m.target.weight_bits == 8 and m.target.arch == "x86_64" %}
/* int8 kernels saturate on an x86 CPU without VNNI: slower ones are exact. */
static int lacks_vnni(void) {
  char line[8192];
  int known = 0, found = 0;
  FILE *file = fopen("/proc/cpuinfo", "r");
  if (file == NULL) return 0;
  while (fgets(line, sizeof line, file) != NULL) {
    known = 1;
    if (strstr(line, "vnni") != NULL) found = 1;
  }
  fclose(file);
  return known && !found;
}

{% endif %}
/* As runner/run.py sets it up: what was verified is this. */
static OrtSession *loaded(OrtEnv *env, const char *bundle) {
  static const char model[] = "/{{ m.model }}";
  OrtSessionOptions *options;
  OrtSession *session;
  char *path = malloc(strlen(bundle) + sizeof model);
  if (path == NULL) exit(1);
  strcat(strcpy(path, bundle), model);
  check(ort->CreateSessionOptions(&options));
  check(ort->SetIntraOpNumThreads(options, {{ m.target.threads }}));
  check(ort->SetInterOpNumThreads(options, 1));
  check(ort->DisableMemPattern(options));
{% for key, value in m.runtime_settings.items() %}
  check(ort->AddSessionConfigEntry(options, "{{ key }}", "{{ value }}"));
{% endfor %}
{% if m.target.weight_bits == 8 and m.target.arch == "x86_64" %}
  if (lacks_vnni()) check(ort->AddSessionConfigEntry(options, "session.x64quantprecision", "1"));
{% endif %}
  check(ort->CreateSession(env, path, options, &session));
  ort->ReleaseSessionOptions(options);
  free(path);
  return session;
}

static void run(OrtSession *session, float effort, float *logits, unsigned char *gates) {
  static const int64_t shape[] = { {{- m.input.shape | join(", ") -}} };
  static const char *const inputs[] = {"image"{{ ', "effort"' if m.effort }}};
  static const char *const outputs[] = {"logits", "gates"};
  OrtMemoryInfo *here;
  OrtValue *given[INPUTS], *found[OUTPUTS] = {NULL, NULL};
  void *data;
  check(ort->CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, &here));
  check(ort->CreateTensorWithDataAsOrtValue(here, image, sizeof image, shape, 4, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8,
                                            &given[0]));
{% if m.effort %}
  check(ort->CreateTensorWithDataAsOrtValue(here, &effort, sizeof effort, NULL, 0, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
                                            &given[1]));
{% else %}
  (void)effort;
{% endif %}
  check(ort->Run(session, NULL, inputs, (const OrtValue *const *)given, INPUTS, outputs, OUTPUTS, found));
  check(ort->GetTensorMutableData(found[0], &data));
  memcpy(logits, data, CLASSES * sizeof *logits);
  check(ort->GetTensorMutableData(found[1], &data));
  memcpy(gates, data, BRANCHES);
  for (int i = 0; i < INPUTS; ++i) ort->ReleaseValue(given[i]);
  for (int i = 0; i < OUTPUTS; ++i) ort->ReleaseValue(found[i]);
  ort->ReleaseMemoryInfo(here);
}

static void print(float *logits, const unsigned char *gates) {
  for (int place = 0; place < 5 && place < CLASSES; ++place) {
    int best = 0;
    for (int i = 1; i < CLASSES; ++i)
      if (logits[i] > logits[best]) best = i;
    printf("class %d: %.9g\n", best, (double)logits[best]);
    logits[best] = -1e38f;
  }
  for (int i = 0; i < BRANCHES; ++i) printf("%d ", gates[i]);
  printf("(branches that ran)\n");
}

{% if m.effort %}
/* Put into `effort` what a word stands for{{ ": a number, or the name of an operating point" if named }}; return whether it is one. */
static int read_effort(const char *word, float *effort) {
  char *rest = NULL;
{% if named %}
  /* 1e+30 stands for infinity: an effort above every threshold. */
  static const struct {
    const char *name;
    float effort;
  } points[] = { {%- for point in named %}{"{{ point.name }}", {{ "%.9g" | format(point.effort) }}}{{ ", " if not loop.last }}{% endfor -%} };
  for (size_t i = 0; i < sizeof points / sizeof *points; ++i)
    if (strcmp(word, points[i].name) == 0) {
      *effort = points[i].effort;
      return 1;
    }
{% endif %}
  *effort = strtof(word, &rest);
  return rest != word && *rest == '\0' && *effort == *effort;
}

{% endif %}
int main(int count, char **words) {
  static float logits[CLASSES];
  static unsigned char gates[BRANCHES + 1];
  const OrtApiBase *base = OrtGetApiBase();
  OrtEnv *env;
  OrtSession *session;
  FILE *file;
  float effort = 0;
  if (count < 3 || count > {{ 4 if m.effort else 3 }}) {
    fprintf(stderr, "usage: %s BUNDLE image.raw{{ " [effort]" if m.effort }}\n", words[0]);
    return 2;
  }
{% if m.effort %}
  if (count > 3 && !read_effort(words[3], &effort)) {
    fprintf(stderr, "%s is no effort; allowed: a number{{ ", " ~ named | map(attribute="name") | join(", ") if named }}\n", words[3]);
    return 2;
  }
{% endif %}
#ifndef ANY_VERSION
  if (strcmp(base->GetVersionString(), VERIFIED) != 0) {
    fprintf(stderr, "ONNX Runtime %s is here, the bundle was verified with %s: install that, or configure with "
            "-DANY_VERSION=ON\n", base->GetVersionString(), VERIFIED);
    return 1;
  }
#endif
  ort = base->GetApi(ORT_API_VERSION);
  if (ort == NULL) {
    fprintf(stderr, "ONNX Runtime %s is older than 1.%d\n", base->GetVersionString(), ORT_API_VERSION);
    return 1;
  }
  file = fopen(words[2], "rb");
  if (file == NULL || fread(image, 1, sizeof image, file) != sizeof image || fgetc(file) != EOF) {
    fprintf(stderr, "%s does not hold %d bytes\n", words[2], IMAGE);
    return 1;
  }
  fclose(file);
  setenv("ORT_DISABLE_TELEMETRY", "1", 1); /* it would report its use over the network */
  check(ort->CreateEnv(ORT_LOGGING_LEVEL_FATAL, "example", &env));
  session = loaded(env, words[1]);
  run(session, effort, logits, gates);
  print(logits, gates);
  ort->ReleaseSession(session);
  ort->ReleaseEnv(env);
  return 0;
}
