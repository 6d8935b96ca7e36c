/* The bytes of quantised weights, once they are there: what must be made of them, and what is no number. */
#include <float.h>
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "kernels/mx.h"
#include "model/quantized.h"

enum { CHUNK = 1 << 20 }; /* bytes of weights that one task looks at, about */

/* Scales of one tensor as whole numbers in their order: E8M0 and E4M3 their byte, BF16 the bits of its magnitude. */
typedef struct seen {
    atomic_uint most;
    atomic_bool inexact; /* a weight is not bf16_safe */
} seen;

typedef struct search {
    mx_block_tensor *list;
    seen *seen;             /* of each */
    const int64_t *first;   /* chunk of each, and their number behind the last */
    const int64_t *rows_at; /* rows of a chunk of each */
    int count;
    bool elements;
    atomic_llong found; /* the lowest chunk with something bad */
} search;

typedef struct place {
    enum { SCALE, WEIGHT, ELEMENT } what;
    int64_t row, at; /* block, or column */
    unsigned bits;
    const char *why;
} place;

/* Rows first ... first + count of an expert. */
typedef struct range {
    const mx_block_tensor *b;
    int64_t expert, first, count;
} range;

static void raise_to(atomic_uint *a, unsigned x) {
    unsigned now = atomic_load(a);
    while (x > now && !atomic_compare_exchange_weak(a, &now, x)) {
    }
}

/* ---- one expert's view --------------------------------------------------------------------------------------------
 */

static mx_matrix of_expert(const mx_block_tensor *b, int64_t e) {
    mx_matrix m = b->matrix;
    m.format = b->coded;
    m.blocks = b->blocks;
    m.data += e * b->data_stride;
    if (m.scales) m.scales += e * b->scale_stride;
    if (m.zeros) m.zeros += e * b->zero_stride;
    return m;
}

/* The largest magnitude that an element can have, its zero taken off. */
static float largest_element(const mx_block_tensor *b) {
    const bool integer = mx_is_integer_format(b->coded);
    if (!integer) return mx_element_largest(b->coded);
    return b->coded == MX_INT8 ? (b->blocks.zeros ? 255.0f : 128.0f) : (b->blocks.zeros ? 15.0f : 8.0f);
}

/* ---- scales --------------------------------------------------------------------------------------------------------
 */

/* Is a weight of block `at` (in the row's scales) of row n infinite? Its column goes to *column. */
static bool overflows(const mx_matrix *w, int64_t n, int64_t at, float scale, int64_t *column) {
    const int sides = w->blocks.sides ? 2 : 1, size = w->blocks.columns;
    const int64_t block = at / sides;
    const float zero = w->zeros ? (float)w->zeros[n * w->zero_stride + block] : 0.0f;
    for (int64_t k = block * size; k < (block + 1) * size; k++) {
        const float x = mx_element_value(w->format, mx_element_get(w->format, w->data + n * w->row_stride, k)) - zero;
        if (sides == 2 && (signbit(x) != 0) != (at % 2 == 1)) continue;
        *column = k;
        if (isfinite(x) && !isfinite(x * scale)) return true;
    }
    return false;
}

/* The first scale of the rows that is no number, or makes a weight infinite. */
static bool find_scale(const range *r, const mx_matrix *w, place *out) {
    const int step = mx_scale_bytes(w->blocks.scale);
    const int64_t per_row = w->scale_stride / step;
    const float largest = largest_element(r->b);
    for (int64_t n = r->first; n < r->first + r->count; n++)
        for (int64_t i = 0; i < per_row; i++) {
            const uint8_t *at = w->scales + n * w->scale_stride + i * step;
            const float scale = mx_scale_value(w->blocks.scale, at);
            *out = (place){SCALE, n, i, step == 2 ? mx_load_u16(at) : *at, NULL};
            if (isnan(scale)) out->why = "NaN";
            if (isinf(scale)) out->why = "infinite";
            if (w->blocks.scale == MX_SCALE_E4M3 && *at > 0x7E && *at != 0xFF)
                out->why = *at == 0x7F ? "NaN" : "negative";
            int64_t column;
            if (!out->why && !isfinite(largest * scale) && overflows(w, n, i, scale, &column)) {
                out->what = WEIGHT;
                out->at = column;
                out->why = "beyond fp32";
            }
            if (out->why) return true;
        }
    return false;
}

/* The smallest and the largest byte. Written for the compiler to make vectors of, as most_of_bf16 and elements_fine. */
static void range_of(const uint8_t *x, int64_t n, uint8_t *low, uint8_t *high) {
    uint8_t least = 255, most = 0;
    for (int64_t i = 0; i < n; i++) {
        least = x[i] < least ? x[i] : least;
        most = x[i] > most ? x[i] : most;
    }
    *low = least;
    *high = most;
}

static unsigned most_of_bf16(const uint8_t *x, int64_t n) {
    uint16_t most = 0;
    for (int64_t i = 0; i < n; i++) {
        const uint16_t v = mx_load_u16(x + 2 * i) & 0x7FFF;
        most = v > most ? v : most;
    }
    return most;
}

/* Are these scales free of what find_scale looks for? Notes what was seen; *unsure: whether they alone do not say that
 * the weights are bf16_safe. */
static bool scales_fine(const range *r, const mx_matrix *w, seen *s, bool *unsure) {
    const mx_scale_type type = w->blocks.scale;
    const uint8_t *at = w->scales + r->first * w->scale_stride;
    const int64_t n = r->count * w->scale_stride; /* rows lie one behind the other */
    unsigned high;
    *unsure = type == MX_SCALE_BF16;
    if (type == MX_SCALE_BF16) {
        high = most_of_bf16(at, n / 2);
    } else {
        uint8_t least, most;
        range_of(at, n, &least, &most);
        high = most;
        *unsure = type == MX_SCALE_E8M0 && !(mx_scale_bf16_safe(w, &least) && mx_scale_bf16_safe(w, &most));
    }
    raise_to(&s->most, high);
    if (type == MX_SCALE_E4M3) return high < 0x7F;
    const uint8_t bytes[2] = {(uint8_t)high, (uint8_t)(high >> 8)};
    const float scale = mx_scale_value(type, bytes);
    return isfinite(scale) && isfinite(scale * largest_element(r->b));
}

/* ---- elements ------------------------------------------------------------------------------------------------------
 */

static bool elements_fine(const uint8_t *x, int64_t n, uint8_t limit) {
    uint8_t bad = 0;
    for (int64_t i = 0; i < n; i++) bad |= (x[i] & 0x7F) >= limit;
    return !bad;
}

/* The first element that is NaN or infinite. */
static bool find_element(const range *r, const mx_matrix *w, place *out) {
    for (int64_t n = r->first; n < r->first + r->count; n++)
        for (int64_t k = 0; k < w->cols; k++) {
            const unsigned code = w->data[n * w->row_stride + k];
            const float x = mx_element_value(w->format, code);
            *out = (place){ELEMENT, n, k, code, isnan(x) ? "NaN" : "infinite"};
            if (!isfinite(x)) return true;
        }
    return false;
}

/* ---- a chunk -------------------------------------------------------------------------------------------------------
 */

static int entry_of(const search *s, int64_t chunk) {
    int low = 0, high = s->count - 1;
    while (low < high) {
        const int middle = (low + high + 1) / 2;
        if (s->first[middle] <= chunk)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

static int64_t chunks_of(int64_t rows, int64_t each) {
    return (rows + each - 1) / each;
}

static range range_of_chunk(const search *s, int64_t chunk, int *entry) {
    *entry = entry_of(s, chunk);
    const mx_block_tensor *b = &s->list[*entry];
    const int64_t each = s->rows_at[*entry], per_expert = chunks_of(b->matrix.rows, each), i = chunk - s->first[*entry];
    range r = {.b = b, .expert = i / per_expert, .first = i % per_expert * each};
    r.count = b->matrix.rows - r.first < each ? b->matrix.rows - r.first : each;
    return r;
}

/* Zero of row n, block k: bits 4 (n mod 8) of word [n / 8, k], plus 8. */
static void unpack_zeros(const range *r) {
    const mx_block_tensor *b = r->b;
    const int64_t per_row = b->matrix.zero_stride;
    const uint8_t *from = b->zero->data + (uint64_t)r->expert * b->zero->slice_stride * (b->experts > 0);
    for (int64_t n = r->first; n < r->first + r->count; n++) {
        int8_t *to = b->zeros + r->expert * b->zero_stride + n * per_row;
        for (int64_t k = 0; k < per_row; k++)
            to[k] = (int8_t)((mx_load_u32(from + 4 * (n / 8 * per_row + k)) >> 4 * (n % 8) & 15) - 8);
    }
}

static bool fine(const search *s, int64_t chunk) {
    int entry;
    const range r = range_of_chunk(s, chunk, &entry);
    const mx_matrix w = of_expert(r.b, r.expert);
    place ignored;
    if (r.b->zeros) unpack_zeros(&r);
    bool unsure = false;
    if (w.scales && !scales_fine(&r, &w, &s->seen[entry], &unsure) && find_scale(&r, &w, &ignored)) return false;
    if (unsure && !atomic_load(&s->seen[entry].inexact) && !mx_rows_bf16_safe(&w, r.first, r.first + r.count))
        atomic_store(&s->seen[entry].inexact, true);
    if (!s->elements || (w.format != MX_E4M3 && w.format != MX_E5M2)) return true;
    return elements_fine(w.data + r.first * w.row_stride, r.count * w.row_stride, w.format == MX_E4M3 ? 0x7F : 0x7C);
}

static void search_range(void *arg, int64_t begin, int64_t end, int thread) {
    (void)thread;
    search *s = arg;
    for (int64_t chunk = begin; chunk < end; chunk++) {
        if (fine(s, chunk)) continue;
        long long now = atomic_load(&s->found);
        while (chunk < now && !atomic_compare_exchange_weak(&s->found, &now, chunk)) {
        }
    }
}

/* Where number `e` of the experts has its part of t: its own tensor, where files have one; *which says which expert
 * where they do not. `b` has t. */
static struct mx_slice_origin origin_of(const mx_block_tensor *b, const mx_tensor *t, int64_t e, char which[40]) {
    *which = 0;
    if (b->experts && t->origin) return t->origin[e];
    if (b->experts) snprintf(which, 40, "expert %lld, ", (long long)e);
    return (struct mx_slice_origin){t->name, t->file};
}

static mx_status refuse(const search *s, int64_t chunk, mx_error *error) {
    int entry;
    const range r = range_of_chunk(s, chunk, &entry);
    const mx_matrix w = of_expert(r.b, r.expert);
    char which[40];
    place p = {0};
    if (!w.scales || !find_scale(&r, &w, &p)) find_element(&r, &w, &p);
    const mx_tensor *t = p.what == SCALE ? r.b->scale : r.b->data;
    const struct mx_slice_origin from = origin_of(r.b, t, r.expert, which);
    if (p.what == SCALE)
        return mx_fail(error, MX_INVALID_FILE,
                       "%s: %s: the scale of %srow %lld, block %lld is 0x%02X (%s): the file is "
                       "damaged",
                       from.file, from.name, which, (long long)p.row, (long long)p.at, p.bits, p.why);
    return mx_fail(error, MX_INVALID_FILE,
                   "%s: %s: the element of %srow %lld, column %lld is %s%s: the file is damaged", from.file, from.name,
                   which, (long long)p.row, (long long)p.at, p.why, p.what == WEIGHT ? " with its scale" : "");
}

/* ---- global scales ------------------------------------------------------------------------------------------------
 */

static float scale_of(mx_scale_type type, unsigned bits) {
    const uint8_t bytes[2] = {(uint8_t)bits, (uint8_t)(bits >> 8)};
    return type == MX_SCALE_NONE ? 1.0f : mx_scale_value(type, bytes);
}

/* Number i of a tensor of F32 or BF16 numbers, of expert e. */
static float number_at(const mx_tensor *t, int64_t e, int64_t i) {
    const uint8_t *from = t->data + (uint64_t)e * t->slice_stride;
    float x;
    if (t->dtype == MX_DTYPE_BF16) return mx_bf16_to_f32(mx_load_u16(from + 2 * i));
    memcpy(&x, from + 4 * i, sizeof x);
    return x;
}

/* docs/quantized.md: fp32, or 1 / the number by one division in fp32. */
static mx_status fill_posts(mx_block_tensor *b, const seen *s, mx_error *error) {
    const int64_t experts = b->experts ? b->experts : 1, each = b->matrix.post_step ? b->matrix.rows : 1;
    const unsigned most = atomic_load(&s->most);
    const double largest = (double)largest_element(b) * (double)scale_of(b->blocks.scale, most);
    for (int64_t e = 0; b->post && e < experts; e++)
        for (int64_t i = 0; i < each; i++) {
            const float x = number_at(b->post, b->experts ? e : 0, i), post = b->divides ? 1.0f / x : x;
            b->posts[e * each + i] = post;
            const char *why = isnan(x)                               ? "NaN"
                              : isinf(x)                             ? "infinite"
                              : x < 0                                ? "negative"
                              : b->divides && x == 0                 ? "zero, by which is divided"
                              : !(largest * (double)post <= FLT_MAX) ? "so that weights are beyond fp32"
                                                                     : NULL;
            if (!why) continue;
            char which[40];
            const struct mx_slice_origin from = origin_of(b, b->post, e, which);
            return mx_fail(error, MX_INVALID_FILE, "%s: %s: %snumber %lld is %g, %s: the file is damaged", from.file,
                           from.name, which, (long long)i, (double)x, why);
        }
    return MX_OK;
}

static mx_status check_shape(const mx_block_tensor *b, mx_error *error) {
    for (int64_t e = 0; b->shape && e < (b->experts ? b->experts : 1); e++) {
        const uint8_t *at = b->shape->data + (b->experts ? (uint64_t)e * b->shape->slice_stride : 0);
        const int64_t rows = (int64_t)mx_load_u64(at), cols = (int64_t)mx_load_u64(at + 8);
        if (rows == b->matrix.rows && cols == b->matrix.cols) continue;
        char which[40];
        const struct mx_slice_origin from = origin_of(b, b->shape, e, which);
        return mx_fail(error, MX_INVALID_FILE, "%s: %s: %ssays [%lld, %lld], expected [%lld, %lld]", from.file,
                       from.name, which, (long long)rows, (long long)cols, (long long)b->matrix.rows,
                       (long long)b->matrix.cols);
    }
    return MX_OK;
}

/* ---- all of them ---------------------------------------------------------------------------------------------------
 */

static int64_t rows_of_chunk(const mx_block_tensor *b) {
    const int64_t rows = CHUNK / (b->matrix.row_stride + b->matrix.scale_stride);
    return rows < 1 ? 1 : rows;
}

mx_status mx_blocks_finish(mx_block_tensor *list, int count, bool elements, mx_pool *pool, mx_error *error) {
    int64_t *first = calloc(2 * (size_t)count + 1, sizeof *first), *rows_at = first ? first + count + 1 : NULL;
    seen *all = calloc((size_t)count + 1, sizeof *all);
    mx_status status =
        first && all ? MX_OK : mx_fail(error, MX_NO_MEMORY, "no memory to check the scales of %d tensors", count);
    search s = {.list = list, .seen = all, .first = first, .rows_at = rows_at, .count = count, .elements = elements};
    for (int i = 0; i < count && !status; i++) {
        rows_at[i] = rows_of_chunk(&list[i]);
        first[i + 1] = first[i] + (list[i].experts ? list[i].experts : 1) * chunks_of(list[i].matrix.rows, rows_at[i]);
        status = check_shape(&list[i], error);
    }
    const int64_t chunks = status ? 0 : first[count];
    atomic_init(&s.found, chunks);
    if (pool && chunks)
        mx_parallel_for(pool, chunks, 1, search_range, &s);
    else
        search_range(&s, 0, chunks, 0);
    if (!status && atomic_load(&s.found) < chunks) status = refuse(&s, atomic_load(&s.found), error);
    for (int i = 0; i < count && !status; i++) {
        status = fill_posts(&list[i], &all[i], error);
        list[i].bf16_safe = !status && !atomic_load(&all[i].inexact);
    }
    free(first);
    free(all);
    return status;
}
