#include "base/arena.h"

#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

mx_status mx_arena_create(size_t size, mx_arena *out, mx_error *error) {
    *out = (mx_arena){0};
    if (size > SIZE_MAX / 2) return mx_fail(error, MX_NO_MEMORY, "%zu bytes of memory asked for", size);
    size = (size + MX_HUGE_PAGE - 1) / MX_HUGE_PAGE * MX_HUGE_PAGE;
    if (!size) size = MX_HUGE_PAGE;
    /* One huge page more than needed, so that the block can start at a multiple of one. */
    char *map = mmap(NULL, size + MX_HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED)
        return mx_fail(error, MX_NO_MEMORY, "%zu bytes of memory cannot be had: %s", size, strerror(errno));
    size_t head = (MX_HUGE_PAGE - (uintptr_t)map % MX_HUGE_PAGE) % MX_HUGE_PAGE;
    if (head) munmap(map, head);
    if (MX_HUGE_PAGE - head) munmap(map + head + size, MX_HUGE_PAGE - head);
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
