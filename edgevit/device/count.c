/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * A plugin of qemu-aarch64 (user mode) that counts executed guest instructions by class, between two marks.
 *
 * It is compiled on the machine that runs it, and is a program of its own beside edgevit: qemu loads it. The guest
 * marks with the system call 0x7ffe, which no kernel knows: argument 1 begins to count, 2 ends and writes one line of
 * A64_CLASSES numbers to the file that the plugin's argument `out=` names. Counts are of whole translated blocks, so a
 * guest that counts must have one busy thread. The declarations are those of qemu-plugin.h, API version 1 (qemu 7.2).
 */
#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "a64.h"

#define EXPORT __attribute__((visibility("default")))
#define MARK 0x7ffe
#define BEGIN 1
#define END 2

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
struct qemu_info_t;
enum qemu_plugin_cb_flags { QEMU_PLUGIN_CB_NO_REGS };

typedef void (*tb_trans_t)(qemu_plugin_id_t, struct qemu_plugin_tb *);
typedef void (*tb_exec_t)(unsigned int, void *);
typedef void (*syscall_t)(qemu_plugin_id_t, unsigned int, int64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                          uint64_t, uint64_t, uint64_t);

void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, tb_trans_t);
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, tb_exec_t, enum qemu_plugin_cb_flags, void *);
void qemu_plugin_register_vcpu_syscall_cb(qemu_plugin_id_t, syscall_t);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);

EXPORT int qemu_plugin_version = 1;

/* One translated block: how often it ran since the mark, and what is in it. They are never freed. */
struct block {
    uint64_t runs;
    uint32_t in[A64_CLASSES];
    struct block *next;
};

static struct block *blocks;
static FILE *out;

static void ran(unsigned int cpu, void *block)
{
    (void)cpu;
    ((struct block *)block)->runs++;
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
    struct block *block = calloc(1, sizeof *block);
    (void)id;
    if (!block)
        abort();
    for (size_t i = 0; i < qemu_plugin_tb_n_insns(tb); i++) {
        uint32_t op;
        memcpy(&op, qemu_plugin_insn_data(qemu_plugin_tb_get_insn(tb, i)), sizeof op);
        block->in[a64_classify(op)]++;
    }
    block->next = __atomic_load_n(&blocks, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(&blocks, &block->next, block, true, __ATOMIC_RELEASE, __ATOMIC_RELAXED))
        ;
    qemu_plugin_register_vcpu_tb_exec_cb(tb, ran, QEMU_PLUGIN_CB_NO_REGS, block);
}

static void called(qemu_plugin_id_t id, unsigned int cpu, int64_t number, uint64_t what, uint64_t a2, uint64_t a3,
                   uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8)
{
    uint64_t sum[A64_CLASSES] = {0};
    (void)id, (void)cpu, (void)a2, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
    if (number != MARK)
        return;
    for (struct block *block = __atomic_load_n(&blocks, __ATOMIC_ACQUIRE); block; block = block->next) {
        for (int i = 0; i < A64_CLASSES; i++)
            sum[i] += block->runs * block->in[i];
        if (what == BEGIN)
            block->runs = 0;
    }
    if (what == END) {
        for (int i = 0; i < A64_CLASSES; i++)
            fprintf(out, "%" PRIu64 "%c", sum[i], i + 1 < A64_CLASSES ? ' ' : '\n');
        fflush(out);
    }
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const struct qemu_info_t *info, int argc, char **argv)
{
    (void)info;
    for (int i = 0; i < argc; i++)
        if (!strncmp(argv[i], "out=", 4))
            out = fopen(argv[i] + 4, "w");
    if (!out) {
        fputs("count: give a file that can be written, out=FILE\n", stderr);
        return 1;
    }
    for (int i = 0; i < A64_CLASSES; i++)
        fprintf(out, "%s%c", a64_names[i], i + 1 < A64_CLASSES ? ' ' : '\n');
    fflush(out);
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_vcpu_syscall_cb(id, called);
    return 0;
}
