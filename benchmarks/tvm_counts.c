/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * Runs compiled kernels on made-up values, each once to warm up and once between two marks of the counter
 * (edgevit/devices/qemu/count.c). benchmarks/tvm_counts.py writes kernels.h: a line KERNEL(name, parameters...) each.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MARK 0x7ffe
enum { UINT8 = 1, FLOAT32 = 2 };

typedef struct {
    void *data;
    int32_t device, id, axes;
    uint8_t code, bits;
    uint16_t lanes;
    int64_t *shape, *strides;
    uint64_t offset;
} Tensor;
typedef struct {
    int32_t type, pad;
    Tensor *tensor;
} Any;
typedef int Kernel(void *self, const Any *arguments, int32_t count, Any *result);

void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count)
{
    fprintf(stderr, "%s: ", kind);
    for (int32_t i = 0; i < count; i++)
        if (parts[i])
            fputs(parts[i], stderr);
    exit(1);
}

static void *need(void *memory)
{
    if (!memory)
        exit(2);
    return memory;
}

static Any made(int code, int axes, int64_t a, int64_t b, int64_t c, int64_t d)
{
    const int64_t extents[] = {a, b, c, d};
    Tensor *tensor = need(calloc(1, sizeof *tensor));
    int64_t count = 1, size = code == FLOAT32 ? 4 : 1;
    *tensor = (Tensor){.device = 1, .axes = axes, .code = (uint8_t)code, .bits = (uint8_t)(8 * size), .lanes = 1};
    tensor->shape = need(calloc(4, sizeof *tensor->shape));
    for (int i = 0; i < axes; i++)
        count *= tensor->shape[i] = extents[i];
    tensor->data = need(aligned_alloc(64, (size_t)((count * size + 127) / 64 * 64)));
    for (int64_t i = 0; i < count; i++)
        if (code == FLOAT32)
            ((float *)tensor->data)[i] = (float)(i * 7919 % 201 - 100) / 100;
        else
            ((uint8_t *)tensor->data)[i] = (uint8_t)(i * 37);
    return (Any){.type = 7, .tensor = tensor};
}

static int count(Kernel *kernel, int32_t parameters, Any *arguments)
{
    Any result = {0};
    int failed = kernel(NULL, arguments, parameters, &result);
    syscall(MARK, 1);
    failed |= kernel(NULL, arguments, parameters, &result);
    syscall(MARK, 2);
    for (int32_t i = 0; i < parameters; i++)
        free(arguments[i].tensor->data);
    return failed;
}

#define KERNEL(name, ...) Kernel __tvm_ffi_##name;
#include "kernels.h"
#undef KERNEL

#define KERNEL(name, ...)                                                       \
    {                                                                           \
        Any arguments[] = {__VA_ARGS__};                                        \
        if (count(__tvm_ffi_##name, sizeof arguments / sizeof *arguments, arguments)) \
            return 1;                                                           \
    }

int main(void)
{
#include "kernels.h"
    return 0;
}
