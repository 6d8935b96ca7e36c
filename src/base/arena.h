#ifndef MX_BASE_ARENA_H
#define MX_BASE_ARENA_H

#include <stddef.h>

#include "base/status.h"

enum { MX_HUGE_PAGE = 2 << 20 };

/* A block of zeroed memory from mmap with transparent huge pages asked for, cut from the front in 64-byte steps.
 * Pages that are never touched cost nothing. */
typedef struct mx_arena {
    char *base;
    size_t size, used;
} mx_arena;

mx_status mx_arena_create(size_t size, mx_arena *out, mx_error *error);
void *mx_arena_take(mx_arena *arena, size_t size); /* 64-byte aligned; NULL when it does not fit */
void mx_arena_destroy(mx_arena *arena);            /* a zeroed arena is allowed */

#endif
