#include <math.h>
#include <string.h>

#include "kernels/scalar/scalar.h"

enum { ROWS = 8 }; /* consecutive rows that share one widened tile */

/* Scratch: K tile [head_dim][MX_TILE], V tile [MX_TILE][head_dim], then one state per row and head. */
typedef struct state {
    float m, l; /* largest logit so far, sum of exp(logit - m) */
} state;

int64_t mx_scalar_attention_scratch(int head_dim, int group) {
    return 2 * (int64_t)head_dim * MX_TILE + 2 * (int64_t)ROWS * group;
}

/* The keys of tile p that the row at `position` sees: slots *lo <= j < *hi, none when *lo >= *hi. */
static void visible(const mx_attention *a, int64_t position, int64_t p, int64_t *lo, int64_t *hi) {
    int64_t first = a->window && position >= a->window ? position - a->window + 1 : 0;
    *lo = first > p * MX_TILE ? first - p * MX_TILE : 0;
    *hi = position + 1 < (p + 1) * MX_TILE ? position + 1 - p * MX_TILE : MX_TILE;
}

/* One query against slots lo..hi of one tile: s_j summed over d ascending, values added over j ascending. */
static void merge(const mx_attention *a, const float *q, const float *k, const float *v, int64_t lo, int64_t hi,
                  state *st, float *out) {
    float s[MX_TILE] = {0};
    for (int d = 0; d < a->head_dim; d++) {
        for (int64_t j = lo; j < hi; j++) s[j] += q[d] * k[(int64_t)d * MX_TILE + j];
    }
    float m = st->m;
    for (int64_t j = lo; j < hi; j++) {
        s[j] *= a->scale;
        m = s[j] > m ? s[j] : m;
    }
    float correction = expf(st->m - m), sum = 0.0f;
    for (int d = 0; d < a->head_dim; d++) out[d] *= correction;
    for (int64_t j = lo; j < hi; j++) {
        float p = expf(s[j] - m);
        sum += p;
        for (int d = 0; d < a->head_dim; d++) out[d] += p * v[j * a->head_dim + d];
    }
    st->l = st->l * correction + sum;
    st->m = m;
}

static void attend_rows(const mx_attention *a, int64_t row0, int64_t row1) {
    int64_t tile = (int64_t)a->head_dim * MX_TILE;
    float *k = a->scratch, *v = k + tile;
    state *states = (state *)(v + tile);
    int64_t element = a->kv == MX_F32 ? 4 : 2, lo, hi;

    for (int64_t i = row0; i < row1; i++) {
        for (int g = 0; g < a->group; g++) {
            states[(i - row0) * a->group + g] = (state){a->sinks[g], 1.0f};
            memset(a->out + i * a->out_stride + (int64_t)g * a->head_dim, 0, (size_t)a->head_dim * sizeof(float));
        }
    }
    visible(a, a->position + row0, 0, &lo, &hi);
    for (int64_t p = lo / MX_TILE; p <= (a->position + row1 - 1) / MX_TILE; p++) {
        const uint8_t *head_tile = a->pages + a->table[p] * a->page_bytes + a->head_offset;
        mx_scalar_widen(k, head_tile, a->kv, tile);
        mx_scalar_widen(v, head_tile + tile * element, a->kv, tile);
        for (int64_t i = row0; i < row1; i++) {
            visible(a, a->position + i, p, &lo, &hi);
            for (int g = 0; g < a->group && lo < hi; g++) {
                merge(a, a->q + i * a->q_stride + (int64_t)g * a->head_dim, k, v, lo, hi,
                      &states[(i - row0) * a->group + g], a->out + i * a->out_stride + (int64_t)g * a->head_dim);
            }
        }
    }
    for (int64_t i = row0; i < row1; i++) {
        for (int g = 0; g < a->group; g++) {
            float *out = a->out + i * a->out_stride + (int64_t)g * a->head_dim;
            float l = states[(i - row0) * a->group + g].l;
            for (int d = 0; d < a->head_dim; d++) out[d] /= l;
        }
    }
}

void mx_scalar_attention(const mx_attention *a) {
    for (int64_t row = 0; row < a->rows; row += ROWS) {
        attend_rows(a, row, row + ROWS < a->rows ? row + ROWS : a->rows);
    }
}
