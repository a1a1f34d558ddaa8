/* SPDX-License-Identifier: Apache-2.0
 *
 * An accountant of the heap, preloaded into a process of an emulated device: bytes that malloc and its kin gave, and
 * anonymous memory that was mapped directly, now and at most. It is compiled with the user's cross compiler and needs
 * neither its C library nor headers of one: what it calls is looked up in the device's glibc when it is loaded.
 *
 * edgevit_heap(what): 0 what is held now, 1 the most since 2 was called, 2 begin anew (and what is held now).
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))
#define ENOMEM 12
#define EINVAL 22
#define MAP_FIXED 0x10
#define MAP_ANONYMOUS 0x20
#define SYS_MUNMAP 215
#define SYS_MREMAP 216
#define SYS_MMAP 222
#define REGIONS 4096

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);
extern size_t malloc_usable_size(void *);
extern long syscall(long, ...);

static size_t held, most;

static void add(size_t bytes)
{
    size_t now = __atomic_add_fetch(&held, bytes, __ATOMIC_RELAXED);
    size_t top = __atomic_load_n(&most, __ATOMIC_RELAXED);
    while (now > top && !__atomic_compare_exchange_n(&most, &top, now, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
        ;
}

static void drop(size_t bytes)
{
    __atomic_sub_fetch(&held, bytes, __ATOMIC_RELAXED);
}

static void *given(void *memory)
{
    if (memory)
        add(malloc_usable_size(memory));
    return memory;
}

EXPORT size_t edgevit_heap(int what)
{
    size_t now = __atomic_load_n(&held, __ATOMIC_RELAXED);
    if (what == 1)
        return __atomic_load_n(&most, __ATOMIC_RELAXED);
    if (what == 2)
        __atomic_store_n(&most, now, __ATOMIC_RELAXED);
    return now;
}

EXPORT void *malloc(size_t bytes)
{
    return given(__libc_malloc(bytes));
}

EXPORT void *calloc(size_t count, size_t bytes)
{
    return given(__libc_calloc(count, bytes));
}

EXPORT void free(void *memory)
{
    if (memory)
        drop(malloc_usable_size(memory));
    __libc_free(memory);
}

EXPORT void *realloc(void *memory, size_t bytes)
{
    size_t before = memory ? malloc_usable_size(memory) : 0;
    void *moved = __libc_realloc(memory, bytes);
    if (moved || !bytes)
        drop(before);
    return given(moved);
}

EXPORT void *memalign(size_t alignment, size_t bytes)
{
    return given(__libc_memalign(alignment, bytes));
}

EXPORT void *aligned_alloc(size_t alignment, size_t bytes)
{
    return memalign(alignment, bytes);
}

EXPORT int posix_memalign(void **memory, size_t alignment, size_t bytes)
{
    void *found;
    if (alignment % sizeof(void *) || !alignment || alignment & (alignment - 1))
        return EINVAL;
    found = memalign(alignment, bytes);
    if (!found)
        return ENOMEM;
    *memory = found;
    return 0;
}

/* Anonymous mappings, so that unmapping a file or a part is told apart. What does not fit in is not counted. */
static struct {
    uintptr_t start, end;
} regions[REGIONS];
static bool busy;

static void lock(void)
{
    while (__atomic_test_and_set(&busy, __ATOMIC_ACQUIRE))
        ;
}

static void unlock(void)
{
    __atomic_clear(&busy, __ATOMIC_RELEASE);
}

static void keep(uintptr_t start, uintptr_t end)
{
    for (int i = 0; start < end && i < REGIONS; i++)
        if (regions[i].start == regions[i].end) {
            regions[i].start = start;
            regions[i].end = end;
            add(end - start);
            return;
        }
}

static void forget(uintptr_t start, uintptr_t end)
{
    for (int i = 0; i < REGIONS; i++) {
        uintptr_t first = regions[i].start, last = regions[i].end;
        if (first >= last || last <= start || end <= first)
            continue;
        regions[i].start = regions[i].end = 0;
        drop(last - first);
        keep(first, start);
        keep(end, last);
    }
}

static uintptr_t pages(size_t bytes)
{
    return (bytes + 4095) & ~(uintptr_t)4095;
}

EXPORT void *mmap(void *address, size_t bytes, int protection, int flags, int file, long offset)
{
    uintptr_t start = (uintptr_t)syscall(SYS_MMAP, address, bytes, protection, flags, file, offset);
    if (start == (uintptr_t)-1)
        return (void *)start;
    lock();
    if (flags & MAP_FIXED)
        forget(start, start + pages(bytes));
    if (flags & MAP_ANONYMOUS && protection)
        keep(start, start + pages(bytes));
    unlock();
    return (void *)start;
}

EXPORT void *mmap64(void *address, size_t bytes, int protection, int flags, int file, long offset)
{
    return mmap(address, bytes, protection, flags, file, offset);
}

EXPORT int munmap(void *address, size_t bytes)
{
    lock();
    forget((uintptr_t)address, (uintptr_t)address + pages(bytes));
    unlock();
    return (int)syscall(SYS_MUNMAP, address, bytes);
}

EXPORT void *mremap(void *address, size_t before, size_t after, int flags, void *wanted)
{
    uintptr_t start = (uintptr_t)syscall(SYS_MREMAP, address, before, after, flags, wanted);
    bool counted = false;
    if (start == (uintptr_t)-1)
        return (void *)start;
    lock();
    for (int i = 0; i < REGIONS; i++)
        counted |= regions[i].start <= (uintptr_t)address && (uintptr_t)address < regions[i].end;
    forget((uintptr_t)address, (uintptr_t)address + pages(before));
    if (counted)
        keep(start, start + pages(after));
    unlock();
    return (void *)start;
}
