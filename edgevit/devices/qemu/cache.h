/* SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * Data caches as the counter models them: set-associative, 64-byte lines, the least recently used leaves.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define CACHE_LINE_BITS 6
#define CACHE_MOST_LEVELS 3
#define CACHE_MOST_WAYS 64

struct cache {
    uint64_t sets, misses;
    unsigned int ways;
    uint64_t *lines; /* [sets][ways], the most recently used first; a line is its address plus one, 0 is none */
};

static struct cache caches[CACHE_MOST_LEVELS];
static int cache_levels;

/* Make the caches of BYTES:WAYS+BYTES:WAYS..; false if that is not what the text says. */
static inline bool cache_make(const char *text)
{
    while (*text && cache_levels < CACHE_MOST_LEVELS) {
        struct cache *cache = &caches[cache_levels++];
        char *end;
        uint64_t bytes = strtoull(text, &end, 10);
        if (*end != ':')
            return false;
        cache->ways = (unsigned int)strtoul(end + 1, &end, 10);
        if (cache->ways < 1 || cache->ways > CACHE_MOST_WAYS || (*end && *end != '+'))
            return false;
        cache->sets = (bytes >> CACHE_LINE_BITS) / cache->ways;
        if (!cache->sets || cache->sets & (cache->sets - 1))
            return false;
        cache->lines = calloc(cache->sets * cache->ways, sizeof *cache->lines);
        if (!cache->lines)
            return false;
        text = *end ? end + 1 : end;
    }
    return cache_levels && !*text;
}

/* Whether the line is there; afterwards it is, as the most recently used of its set. */
static inline bool cache_has(struct cache *cache, uint64_t line)
{
    uint64_t *set = cache->lines + (line & (cache->sets - 1)) * cache->ways;
    unsigned int way = 0, last = cache->ways - 1;
    if (set[0] == line + 1)
        return true;
    while (way < last && set[way] != line + 1)
        way++;
    bool here = set[way] == line + 1;
    memmove(set + 1, set, way * sizeof *set);
    set[0] = line + 1;
    return here;
}

static inline void cache_touch(uint64_t address, unsigned int bytes)
{
    uint64_t last = (address + bytes - 1) >> CACHE_LINE_BITS;
    for (uint64_t line = address >> CACHE_LINE_BITS; line <= last; line++)
        for (int level = 0; level < cache_levels && !cache_has(&caches[level], line); level++)
            caches[level].misses++;
}

static inline void cache_forget_misses(void)
{
    for (int level = 0; level < cache_levels; level++)
        caches[level].misses = 0;
}
