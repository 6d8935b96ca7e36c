#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "kernels/scalar/scalar.h"

enum { ROWS = 8 }; /* consecutive rows that share one widened tile */

/* A part, and a row's state while it takes parts: o [group][head_dim], then m [group], l [group].
 * Scratch: K tile [head_dim][MX_TILE], V tile [MX_TILE][head_dim], ROWS parts, ROWS states. */

int64_t mx_scalar_attention_scratch(int head_dim, int group) {
    return 2 * (int64_t)head_dim * MX_TILE + 2 * ROWS * mx_attention_part(head_dim, group);
}

/* The positions lo <= j < hi of start ... start + count - 1 that row i sees; none when *lo >= *hi. */
static void visible(const mx_attention *a, int64_t i, int64_t start, int64_t count, int64_t *lo, int64_t *hi) {
    int64_t position = a->position + i;
    int64_t first = a->window && position >= a->window ? position - a->window + 1 : 0;
    *lo = first > start ? first : start;
    *hi = position + 1 < start + count ? position + 1 : start + count;
}

static void begin(const mx_attention *a, float *state, float l) {
    int64_t d = a->head_dim;
    memset(state, 0, (size_t)(a->group * d) * sizeof *state);
    for (int64_t g = 0; g < a->group; g++) {
        state[a->group * d + g] = a->sinks[g];
        state[a->group * (d + 1) + g] = l;
    }
}

/* One query against slots lo..hi of one tile: s_j summed over d ascending, values added over j ascending. */
static void merge(const mx_attention *a, const float *q, const float *k, const float *v, int64_t lo, int64_t hi,
                  float *o, float *m, float *l) {
    float s[MX_TILE] = {0}, most = *m;
    for (int d = 0; d < a->head_dim; d++) {
        for (int64_t j = lo; j < hi; j++) s[j] += q[d] * k[(int64_t)d * MX_TILE + j];
    }
    for (int64_t j = lo; j < hi; j++) {
        s[j] *= a->scale;
        most = s[j] > most ? s[j] : most;
    }
    float correction = expf(*m - most), sum = 0.0f;
    for (int d = 0; d < a->head_dim; d++) o[d] *= correction;
    for (int64_t j = lo; j < hi; j++) {
        float p = expf(s[j] - most);
        sum += p;
        for (int d = 0; d < a->head_dim; d++) o[d] += p * v[j * a->head_dim + d];
    }
    *l = *l * correction + sum;
    *m = most;
}

/* The parts of one segment, of rows row0 <= i < row1 that see a key of it; `stride` floats from row to row. */
static void attend_segment(const mx_attention *a, int64_t row0, int64_t row1, int64_t segment, float *parts,
                           int64_t stride) {
    int64_t tile = (int64_t)a->head_dim * MX_TILE, d = a->head_dim, group = a->group;
    float *k = a->scratch, *v = k + tile;
    int64_t element = a->kv == MX_F32 ? 4 : 2, lo, hi, end;

    for (int64_t i = row0; i < row1; i++) begin(a, parts + (i - row0) * stride, 0.0f);
    visible(a, row0, segment * MX_SEGMENT, MX_SEGMENT, &lo, &hi);
    visible(a, row1 - 1, segment * MX_SEGMENT, MX_SEGMENT, &hi, &end);
    for (int64_t p = lo / MX_TILE; p * MX_TILE < end; p++) {
        const uint8_t *head_tile = a->pages + a->table[p] * a->page_bytes + a->head_offset;
        mx_scalar_widen(k, head_tile, a->kv, tile);
        mx_scalar_widen(v, head_tile + tile * element, a->kv, tile);
        for (int64_t i = row0; i < row1; i++) {
            visible(a, i, p * MX_TILE, MX_TILE, &lo, &hi);
            float *part = parts + (i - row0) * stride, *m = part + group * d, *l = m + group;
            for (int64_t g = 0; g < group && lo < hi; g++) {
                merge(a, a->q + i * a->q_stride + g * d, k, v, lo - p * MX_TILE, hi - p * MX_TILE, part + g * d, m + g,
                      l + g);
            }
        }
    }
}

/* The state takes one part. */
static void take(const mx_attention *a, float *state, const float *part) {
    int64_t d = a->head_dim, heads = a->group * d;
    float *m = state + heads, *l = m + a->group;
    const float *part_m = part + heads, *part_l = part_m + a->group;
    for (int64_t g = 0; g < a->group; g++) {
        float most = part_m[g] > m[g] ? part_m[g] : m[g], old = expf(m[g] - most), new = expf(part_m[g] - most);
        l[g] = l[g] * old + part_l[g] * new;
        m[g] = most;
        for (int64_t j = g * d; j < (g + 1) * d; j++) state[j] = state[j] * old + part[j] * new;
    }
}

static void finish(const mx_attention *a, int64_t row, const float *state) {
    int64_t heads = (int64_t)a->group * a->head_dim;
    const float *l = state + heads + a->group;
    for (int64_t j = 0; j < heads; j++) a->out[row * a->out_stride + j] = state[j] / l[j / a->head_dim];
}

static bool sees(const mx_attention *a, int64_t row, int64_t segment) {
    int64_t lo, hi;
    visible(a, row, segment * MX_SEGMENT, MX_SEGMENT, &lo, &hi);
    return lo < hi;
}

void mx_scalar_attention_segment(const mx_attention *a, int64_t segment) {
    int64_t size = mx_attention_part(a->head_dim, a->group), stride = a->segments * size;
    float *parts = a->parts + (segment - a->first_segment) * size;
    for (int64_t row = 0, end; row < a->rows; row = end) {
        end = row + ROWS < a->rows ? row + ROWS : a->rows;
        attend_segment(a, row, end, segment, parts + row * stride, stride);
    }
}

void mx_scalar_attention_join(const mx_attention *a) {
    int64_t size = mx_attention_part(a->head_dim, a->group);
    for (int64_t row = 0; row < a->rows; row++) {
        begin(a, a->scratch, 1.0f);
        for (int64_t s = 0; s < a->segments; s++) {
            if (sees(a, row, a->first_segment + s)) take(a, a->scratch, a->parts + (row * a->segments + s) * size);
        }
        finish(a, row, a->scratch);
    }
}

void mx_scalar_attention(const mx_attention *a) {
    int64_t size = mx_attention_part(a->head_dim, a->group), lo, hi;
    float *parts = a->scratch + 2 * (int64_t)a->head_dim * MX_TILE, *states = parts + ROWS * size;
    for (int64_t row = 0, end; row < a->rows; row = end) {
        end = row + ROWS < a->rows ? row + ROWS : a->rows;
        for (int64_t i = row; i < end; i++) begin(a, states + (i - row) * size, 1.0f);
        visible(a, row, 0, a->position + end, &lo, &hi);
        for (int64_t s = lo / MX_SEGMENT; s * MX_SEGMENT < a->position + end; s++) {
            attend_segment(a, row, end, s, parts, size);
            for (int64_t i = row; i < end; i++) {
                if (sees(a, i, s)) take(a, states + (i - row) * size, parts + (i - row) * size);
            }
        }
        for (int64_t i = row; i < end; i++) finish(a, i, states + (i - row) * size);
    }
}
