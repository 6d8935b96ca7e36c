#include "model/scales.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

enum {
    BF16_LEAST_SCALE = 2,  /* 0.5 * 2^(2 - 127) is the smallest normal number */
    BF16_MOST_SCALE = 252, /* 6 * 2^(252 - 127) is below the largest */
};

typedef struct search {
    const mx_scale_view *view;
    const int64_t *first_chunk; /* of each view, an expert each, and their total behind the last */
    atomic_bool *extreme;       /* of each view: a scale outside 2..252 was seen, of a block that is not zeros */
    int count;
    atomic_llong found; /* lowest chunk with a bad scale */
} search;

static int view_of_chunk(const search *s, int64_t chunk) {
    int low = 0, high = s->count - 1;
    while (low < high) {
        int middle = (low + high + 1) / 2;
        if (s->first_chunk[middle] <= chunk)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

/* The smallest and the largest scale. Written for the compiler to make vectors of, where they lie side by side. */
static void range_of(const uint8_t *scale, int64_t n, uint64_t step, uint8_t *low, uint8_t *high) {
    uint8_t least = 255, most = 0;
    if (step == 1)
        for (int64_t i = 0; i < n; i++) {
            least = scale[i] < least ? scale[i] : least;
            most = scale[i] > most ? scale[i] : most;
        }
    else
        for (int64_t i = 0; i < n; i++, scale += step) {
            least = *scale < least ? *scale : least;
            most = *scale > most ? *scale : most;
        }
    *low = least;
    *high = most;
}

/* The block's largest value times 2^(scale - 127) must not pass FLT_MAX: with scale 253 that refuses 4 and 6 (codes 6
 * and 7 without their sign), with 254 also 2 and 3. 6 * 2^125, with scale 252, is below it. */
static bool overflows(uint8_t scale, const uint8_t *block) {
    const int first = scale == 254 ? 4 : 6;
    if (scale < 253) return false;
    for (int i = 0; i < 16; i++)
        if ((block[i] & 7) >= first || (block[i] >> 4 & 7) >= first) return true;
    return false;
}

static bool is_zeros(const uint8_t *block) {
    uint8_t any = 0;
    for (int i = 0; i < 16; i++) any |= block[i] & 0x77;
    return !any;
}

static bool any_extreme(const mx_scale_view *v, const uint8_t *scale, const uint8_t *block, int64_t n) {
    for (int64_t i = 0; i < n; i++, scale += v->scale_step, block += v->block_step)
        if ((*scale < BF16_LEAST_SCALE || *scale > BF16_MOST_SCALE) && !is_zeros(block)) return true;
    return false;
}

/* The first of n F16 scales that is no number, or -1. */
static int64_t find_f16(const uint8_t *scale, int64_t n, uint64_t step) {
    for (int64_t i = 0; i < n; i++, scale += step)
        if ((scale[1] & 0x7C) == 0x7C) return i;
    return -1;
}

/* The block of a chunk's first bad scale: 0xFF, or one with which a weight is infinite. -1: there is none. Notes
 * whether any is extreme. */
static int64_t find_in_chunk(search *s, int64_t chunk, int *view) {
    const mx_scale_view *v = &s->view[ *view = view_of_chunk(s, chunk)];
    const uint64_t expert = (uint64_t)(chunk - s->first_chunk[*view]);
    const uint8_t *scale = v->scale + expert * v->scale_stride;
    const int64_t n = v->rows * v->per_row;
    if (!v->bf16_safe) return find_f16(scale, n, v->scale_step);
    const uint8_t *block = v->block + expert * v->block_stride;
    uint8_t low, high;
    range_of(scale, n, v->scale_step, &low, &high);
    if ((low < BF16_LEAST_SCALE || high > BF16_MOST_SCALE) && !atomic_load(&s->extreme[*view]) &&
        any_extreme(v, scale, block, n))
        atomic_store(&s->extreme[*view], true);
    if (high < 253) return -1;
    for (int64_t i = 0; i < n; i++, scale += v->scale_step, block += v->block_step)
        if (*scale == 255 || overflows(*scale, block)) return i;
    return -1;
}

static void search_range(void *arg, int64_t begin, int64_t end, int thread) {
    (void)thread;
    search *s = arg;
    int view;
    for (int64_t chunk = begin; chunk < end && chunk < atomic_load(&s->found); chunk++) {
        if (find_in_chunk(s, chunk, &view) < 0) continue;
        long long now = atomic_load(&s->found);
        while (chunk < now && !atomic_compare_exchange_weak(&s->found, &now, chunk)) {
        }
    }
}

static mx_status refuse(search *s, int64_t chunk, mx_error *error) {
    int view;
    const int64_t block = find_in_chunk(s, chunk, &view), expert = chunk - s->first_chunk[view];
    const mx_scale_view *v = &s->view[view];
    const uint8_t *at = v->scale + (uint64_t)expert * v->scale_stride + (uint64_t)block * v->scale_step;
    const unsigned scale = v->bf16_safe ? *at : (unsigned)(at[0] | at[1] << 8);
    char which[40] = "";
    if (v->tensor->dims > 2) snprintf(which, sizeof which, "expert %lld, ", (long long)expert);
    return mx_fail(error, MX_INVALID_FILE,
                   "%s: %s: the scale of %srow %lld, block %lld is 0x%02X (%s): the file is damaged", v->tensor->file,
                   v->tensor->name, which, (long long)(block / v->per_row), (long long)(block % v->per_row), scale,
                   !v->bf16_safe  ? "no number"
                   : scale == 255 ? "NaN"
                                  : "with it a weight is beyond fp32");
}

mx_status mx_scales_check(const mx_scale_view *view, int count, mx_pool *pool, mx_error *error) {
    int64_t *first = calloc((size_t)count + 1, sizeof *first);
    atomic_bool *extreme = calloc((size_t)count + 1, sizeof *extreme);
    if (!first || !extreme) {
        free(first);
        free(extreme);
        return mx_fail(error, MX_NO_MEMORY, "no memory to check the scales of %d tensors", count);
    }
    for (int i = 0; i < count; i++) first[i + 1] = first[i] + view[i].experts;
    search s = {.view = view, .first_chunk = first, .extreme = extreme, .count = count};
    const int64_t chunks = first[count];
    atomic_init(&s.found, chunks);
    if (pool)
        mx_parallel_for(pool, chunks, 1, search_range, &s);
    else
        search_range(&s, 0, chunks, 0);
    mx_status status = MX_OK;
    if (atomic_load(&s.found) < chunks) status = refuse(&s, atomic_load(&s.found), error);
    for (int i = 0; i < count; i++)
        if (view[i].bf16_safe) *view[i].bf16_safe = !atomic_load(&extreme[i]);
    free(first);
    free(extreme);
    return status;
}
