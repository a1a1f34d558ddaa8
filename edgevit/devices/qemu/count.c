/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * A plugin of qemu-aarch64 (user mode) that counts what a guest executes between two marks: instructions by class,
 * runs of every translated block, and misses of data caches.
 *
 * It is compiled on the machine that runs it, and is a program of its own beside edgevit: qemu loads it. The guest
 * marks with the system call 0x7ffe, which no kernel knows: argument 1 begins to count, 2 ends. Its arguments:
 *
 *   out=FILE      a line of names, then one line per run: A64_CLASSES numbers, and the misses of each cache
 *   blocks=FILE   if given: `run N` per run, then `ID RUNS` of every block that ran; before its first run, a block is
 *                 told as `block ID INSTRUCTIONS BYTES`, its code in hexadecimal
 *   caches=S:W+.. if given: caches of S bytes and W ways, the nearest first
 *   misses=A+B..  the runs, from 0 on, that tell their misses; that is slow, the others tell 0
 *
 * Counts are of whole translated blocks, so a guest that counts must have one busy thread. The caches have lines of 64
 * bytes, the least recently used line leaves, writes allocate, nothing is prefetched, addresses are virtual.
 * Of a guest that is not aarch64 (blocks of x86-64 hold the method against measured time) all instructions are `other`.
 *
 * The declarations are those of qemu-plugin.h. PLUGIN_API is its version: 1 is qemu 7 and 8, 2 to 6 are 9.0 to 10.2.
 */
#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "a64.h"
#include "cache.h"

#ifndef PLUGIN_API
#define PLUGIN_API 1
#endif
#define NEWEST_API 6

#define EXPORT __attribute__((visibility("default")))
#define MARK 0x7ffe
#define BEGIN 1
#define END 2
#define MOST_RUNS 4096

typedef uint64_t qemu_plugin_id_t;
typedef uint32_t qemu_plugin_meminfo_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
struct qemu_info_t {
    const char *target_name;
    struct {
        int min, cur;
    } version;
};
enum qemu_plugin_cb_flags { QEMU_PLUGIN_CB_NO_REGS };
enum qemu_plugin_mem_rw { QEMU_PLUGIN_MEM_RW = 3 };

typedef void (*tb_trans_t)(qemu_plugin_id_t, struct qemu_plugin_tb *);
typedef void (*tb_exec_t)(unsigned int, void *);
typedef void (*mem_t)(unsigned int, qemu_plugin_meminfo_t, uint64_t, void *);
typedef void (*syscall_t)(qemu_plugin_id_t, unsigned int, int64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                          uint64_t, uint64_t, uint64_t);

void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, tb_trans_t);
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, tb_exec_t, enum qemu_plugin_cb_flags, void *);
void qemu_plugin_register_vcpu_mem_cb(struct qemu_plugin_insn *, mem_t, enum qemu_plugin_cb_flags,
                                      enum qemu_plugin_mem_rw, void *);
void qemu_plugin_register_vcpu_syscall_cb(qemu_plugin_id_t, syscall_t);
unsigned int qemu_plugin_mem_size_shift(qemu_plugin_meminfo_t);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *);
#if PLUGIN_API < 3
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);
#else
size_t qemu_plugin_insn_data(const struct qemu_plugin_insn *, void *, size_t);
#endif

EXPORT int qemu_plugin_version = PLUGIN_API;

/* One translated block: how often it ran since the mark, and what is in it. They are never freed. */
struct block {
    uint64_t runs;
    uint32_t in[A64_CLASSES];
    uint32_t id, instructions;
    size_t bytes;
    bool told;
    uint8_t *code; /* NULL: nobody asked for it */
    struct block *next;
};

static struct block *blocks;
static FILE *out, *told;
static bool a64, modelling, modelled[MOST_RUNS];
static uint32_t last_id;
static unsigned int marked_runs;

static void ran(unsigned int cpu, void *block)
{
    (void)cpu;
    ((struct block *)block)->runs++;
}

static void touched(unsigned int cpu, qemu_plugin_meminfo_t info, uint64_t address, void *unused)
{
    (void)cpu, (void)unused;
    if (modelling)
        cache_touch(address, 1u << qemu_plugin_mem_size_shift(info));
}

static size_t code_of(const struct qemu_plugin_insn *insn, uint8_t *to)
{
    size_t size = qemu_plugin_insn_size(insn);
#if PLUGIN_API < 3
    memcpy(to, qemu_plugin_insn_data(insn), size);
    return size;
#else
    return qemu_plugin_insn_data(insn, to, size);
#endif
}

static void *need(void *memory)
{
    if (!memory)
        abort();
    return memory;
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
    struct block *block = need(calloc(1, sizeof *block));
    size_t count = qemu_plugin_tb_n_insns(tb);
    uint8_t *code = need(malloc(16 * count + 1));
    (void)id;
    block->instructions = (uint32_t)count;
    block->id = __atomic_add_fetch(&last_id, 1, __ATOMIC_RELAXED);
    for (size_t i = 0; i < count; i++) {
        struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
        size_t size = code_of(insn, code + block->bytes);
        uint32_t op = 0;
        if (a64)
            memcpy(&op, code + block->bytes, sizeof op);
        block->in[a64 ? a64_classify(op) : A64_OTHER]++;
        block->bytes += size;
        if (cache_levels)
            qemu_plugin_register_vcpu_mem_cb(insn, touched, QEMU_PLUGIN_CB_NO_REGS, QEMU_PLUGIN_MEM_RW, NULL);
    }
    if (told)
        block->code = code;
    else
        free(code);
    block->next = __atomic_load_n(&blocks, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(&blocks, &block->next, block, true, __ATOMIC_RELEASE, __ATOMIC_RELAXED))
        ;
    qemu_plugin_register_vcpu_tb_exec_cb(tb, ran, QEMU_PLUGIN_CB_NO_REGS, block);
}

static void tell_block(struct block *block)
{
    if (!block->told) {
        fprintf(told, "block %" PRIu32 " %" PRIu32 " ", block->id, block->instructions);
        for (size_t i = 0; i < block->bytes; i++)
            fprintf(told, "%02x", block->code[i]);
        fputc('\n', told);
        block->told = true;
    }
    fprintf(told, "%" PRIu32 " %" PRIu64 "\n", block->id, block->runs);
}

static void tell(const uint64_t *sum)
{
    for (int i = 0; i < A64_CLASSES; i++)
        fprintf(out, "%s%" PRIu64, i ? " " : "", sum[i]);
    for (int i = 0; i < cache_levels; i++)
        fprintf(out, " %" PRIu64, caches[i].misses);
    fputc('\n', out);
    fflush(out);
    if (told)
        fflush(told);
}

static void called(qemu_plugin_id_t id, unsigned int cpu, int64_t number, uint64_t what, uint64_t a2, uint64_t a3,
                   uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8)
{
    uint64_t sum[A64_CLASSES] = {0};
    (void)id, (void)cpu, (void)a2, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
    if (number != MARK)
        return;
    modelling = what == BEGIN && marked_runs < MOST_RUNS && modelled[marked_runs];
    if (what == END && told)
        fprintf(told, "run %u\n", marked_runs);
    for (struct block *block = __atomic_load_n(&blocks, __ATOMIC_ACQUIRE); block; block = block->next) {
        for (int i = 0; i < A64_CLASSES; i++)
            sum[i] += block->runs * block->in[i];
        if (what == END && block->code && block->runs)
            tell_block(block);
        if (what == BEGIN)
            block->runs = 0;
    }
    if (what == BEGIN)
        cache_forget_misses();
    if (what == END) {
        tell(sum);
        marked_runs++;
    }
}

static bool model_runs(const char *text)
{
    char *end = (char *)text;
    for (; *text; text = *end ? end + 1 : end) {
        unsigned long run = strtoul(text, &end, 10);
        if (end == text || (*end && *end != '+') || run >= MOST_RUNS)
            return false;
        modelled[run] = true;
    }
    return true;
}

static FILE *opened(const char *argument, const char *name)
{
    size_t length = strlen(name);
    return strncmp(argument, name, length) ? NULL : fopen(argument + length, "w");
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const struct qemu_info_t *info, int argc, char **argv)
{
    int api = info->version.cur;
    bool good = true;
    if (api > NEWEST_API || (api < 3) != (PLUGIN_API < 3)) {
        fprintf(stderr, "count: made for version %d of qemu's plugins, this qemu has version %d\n", PLUGIN_API, api);
        return 1;
    }
    a64 = !strcmp(info->target_name, "aarch64");
    for (int i = 0; i < argc; i++) {
        if (!strncmp(argv[i], "out=", 4))
            good &= (out = opened(argv[i], "out=")) != NULL;
        else if (!strncmp(argv[i], "blocks=", 7))
            good &= (told = opened(argv[i], "blocks=")) != NULL;
        else if (!strncmp(argv[i], "misses=", 7))
            good &= model_runs(argv[i] + 7);
        else
            good &= !strncmp(argv[i], "caches=", 7) && cache_make(argv[i] + 7);
    }
    if (!out || !good) {
        fputs("count: out=FILE[,blocks=FILE][,caches=BYTES:WAYS+..,misses=RUN+..], files that can be written\n", stderr);
        return 1;
    }
    for (int i = 0; i < A64_CLASSES; i++)
        fprintf(out, "%s%s", i ? " " : "", a64_names[i]);
    for (int i = 0; i < cache_levels; i++)
        fprintf(out, " miss%d", i + 1);
    fputc('\n', out);
    fflush(out);
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_vcpu_syscall_cb(id, called);
    return 0;
}
