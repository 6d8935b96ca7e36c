#include "base/arena.h"

#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

enum { HUGE = 2 << 20 };

mx_status mx_arena_create(size_t size, mx_arena *out, mx_error *error) {
    *out = (mx_arena){0};
    if (size > SIZE_MAX / 2) return mx_fail(error, MX_NO_MEMORY, "%zu bytes of memory asked for", size);
    size = (size + HUGE - 1) / HUGE * HUGE;
    if (!size) size = HUGE;
    /* One huge page more than needed, so that the block can start at a multiple of one. */
    char *map = mmap(NULL, size + HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED)
        return mx_fail(error, MX_NO_MEMORY, "%zu bytes of memory cannot be had: %s", size, strerror(errno));
    size_t head = (HUGE - (uintptr_t)map % HUGE) % HUGE;
    if (head) munmap(map, head);
    if (HUGE - head) munmap(map + head + size, HUGE - head);
    *out = (mx_arena){.base = map + head, .size = size};
    madvise(out->base, size, MADV_HUGEPAGE);
    return MX_OK;
}

void *mx_arena_take(mx_arena *arena, size_t size) {
    if (size > SIZE_MAX - 63) return NULL;
    size = (size + 63) / 64 * 64;
    if (size > arena->size - arena->used) return NULL;
    void *p = arena->base + arena->used;
    arena->used += size;
    return p;
}

void mx_arena_destroy(mx_arena *arena) {
    if (arena->base) munmap(arena->base, arena->size);
    *arena = (mx_arena){0};
}
