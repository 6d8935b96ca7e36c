#include "kernels/attention_walk.h"

#include <float.h>
#include <math.h>
#include <string.h>

enum { QUERIES = 128 }; /* query vectors of a block, unless the group alone is larger */

static const float log2e = 0x1.715476p+0f;

/* Rows row0 ... row0 + rows - 1 and the scratch they are in. */
typedef struct block {
    const mx_attention *a;
    const mx_attention_tier *tier;
    int64_t row0, rows;
    int64_t first, last; /* positions that any of them sees */
    float *s, *wide;     /* [MX_BATCH][MX_TILE], [2][head_dim * MX_TILE] */
    float *q, *o;
    mx_queries *batch;
    int64_t batches;
} block;

static int64_t rows_at_once(int group) {
    return group < QUERIES ? QUERIES / group : 1;
}

/* In units of ln 2, and finite: m - m must be 0 also where a sink is -infinity. */
static float sink_of(const mx_attention *a, int64_t head) {
    return fmaxf(a->sinks[head] * log2e, -FLT_MAX);
}

static int64_t round_up(int64_t n, int64_t step) {
    return (n + step - 1) / step * step;
}

static int64_t first_seen(const mx_attention *a, int64_t position) {
    return a->window && position >= a->window ? position - a->window + 1 : 0;
}

int64_t mx_walk_attention_scratch(const mx_attention_tier *tier, int head_dim, int group) {
    int64_t count = rows_at_once(group) * group, batches = count / tier->batch + tier->batch;
    return MX_BATCH * MX_TILE + 2 * (int64_t)head_dim * MX_TILE + round_up(count * head_dim, 16) +
           round_up(count * round_up(head_dim, tier->lanes), 16) +
           batches * (int64_t)(sizeof(mx_queries) / sizeof(float));
}

/* q[d][j] = from[j][d] * factor. Whoever calls it with a constant count has it vectorised. */
static inline void turn(float *restrict q, const float *const from[MX_BATCH], int count, int64_t head_dim,
                        float factor) {
    for (int64_t d = 0; d < head_dim; d++) {
        for (int j = 0; j < count; j++) q[d * count + j] = from[j][d] * factor;
    }
}

/* Query vectors i ... i + b->count - 1 of the block: their q transposed, their bounds. */
static void load_batch(const block *k, mx_queries *b, int64_t i) {
    const mx_attention *a = k->a;
    float *q = k->q + i * a->head_dim, factor = a->scale * log2e;
    const float *from[MX_BATCH];
    b->q = q;
    b->o = k->o + i * round_up(a->head_dim, k->tier->lanes);
    for (int64_t j = 0; j < b->count; j++) {
        int64_t row = k->row0 + (i + j) / a->group, head = (i + j) % a->group;
        from[j] = a->q + row * a->q_stride + head * a->head_dim;
        b->position[j] = a->position + row;
        b->first[j] = first_seen(a, b->position[j]);
        b->sink[j] = sink_of(a, head);
        b->row_m[j] = b->sink[j];
        b->row_l[j] = 1.0f;
        b->out[j] = a->out + row * a->out_stride + head * a->head_dim;
    }
    if (b->count == 8)
        turn(q, from, 8, a->head_dim, factor);
    else if (b->count == 4)
        turn(q, from, 4, a->head_dim, factor);
    else
        turn(q, from, b->count, a->head_dim, factor);
}

static block block_make(const mx_attention *a, const mx_attention_tier *tier, int64_t row0) {
    int64_t rows = rows_at_once(a->group), count = rows * a->group;
    if (rows > a->rows - row0) rows = a->rows - row0;
    block k = {.a = a, .tier = tier, .row0 = row0, .rows = rows};
    k.first = first_seen(a, a->position + row0);
    k.last = a->position + row0 + rows - 1;
    k.s = a->scratch;
    k.wide = k.s + MX_BATCH * MX_TILE;
    k.q = k.wide + 2 * (int64_t)a->head_dim * MX_TILE;
    k.o = k.q + round_up(count * a->head_dim, 16);
    k.batch = (mx_queries *)(k.o + round_up(count * round_up(a->head_dim, tier->lanes), 16));
    count = rows * a->group;
    for (int64_t i = 0; i < count; i += k.batch[k.batches++].count) {
        mx_queries *b = &k.batch[k.batches];
        b->count = tier->batch;
        while (b->count > count - i) b->count /= 2;
        load_batch(&k, b, i);
    }
    return k;
}

/* Slots of tile p that the batch sees; false when there are none. */
static bool look(mx_tile *t, const mx_queries *b, int64_t p) {
    t->any = 0;
    for (int i = 0; i < b->count; i++) {
        int64_t lo = b->first[i] - p * MX_TILE, hi = b->position[i] + 1 - p * MX_TILE;
        uint64_t below_hi = hi <= 0 ? 0 : hi >= MX_TILE ? ~0ull : (1ull << hi) - 1;
        uint64_t from_lo = lo >= MX_TILE ? 0 : lo <= 0 ? ~0ull : ~0ull << lo;
        t->any |= t->visible[i] = below_hi & from_lo;
    }
    return t->any != 0;
}

static const uint8_t *tile_at(const mx_attention *a, int64_t p) {
    return a->pages + a->table[p] * a->page_bytes + a->head_offset;
}

/* The parts of one segment, in the batches' m, l and o. */
static void attend_segment(const block *k, int64_t segment) {
    const mx_attention *a = k->a;
    const mx_attention_tier *tier = k->tier;
    int64_t start = segment * MX_SEGMENT, end = start + MX_SEGMENT - 1, size = a->kv == MX_F32 ? 4 : 2;
    int64_t elements = (int64_t)a->head_dim * MX_TILE;
    bool wide = a->kv != MX_F32 && tier->wide_from && k->batches >= tier->wide_from;
    mx_tile_fn *fn = tier->tile[wide ? MX_F32 : a->kv];
    mx_tile t = {.head_dim = a->head_dim, .s = k->s};

    for (mx_queries *b = k->batch; b < k->batch + k->batches; b++) {
        memcpy(b->m, b->sink, sizeof b->m);
        memset(b->l, 0, sizeof b->l);
        memset(b->o, 0, (size_t)(b->count * round_up(a->head_dim, tier->lanes)) * sizeof *b->o);
    }
    if (start < k->first) start = k->first;
    if (end > k->last) end = k->last;
    for (int64_t p = start / MX_TILE; p <= end / MX_TILE; p++) {
        t.k = tile_at(a, p);
        t.v = t.k + elements * size;
        t.ahead = p < k->last / MX_TILE ? tile_at(a, p + 1) - t.k : 0;
        if (wide) {
            tier->widen(k->wide, t.k, a->kv, 2 * elements);
            t.k = (const uint8_t *)k->wide;
            t.v = (const uint8_t *)(k->wide + elements);
            t.ahead = 0;
        }
        for (mx_queries *b = k->batch; b < k->batch + k->batches; b++) {
            if (look(&t, b, p)) fn(&t, b);
        }
    }
}

static bool sees(const mx_queries *b, int i, int64_t segment) {
    return b->first[i] < (segment + 1) * MX_SEGMENT && b->position[i] >= segment * MX_SEGMENT;
}

void mx_walk_attention(const mx_attention *a, const mx_attention_tier *tier) {
    for (int64_t row = 0; row < a->rows; row += rows_at_once(a->group)) {
        block k = block_make(a, tier, row);
        for (int64_t i = 0; i < k.rows; i++) {
            memset(a->out + (row + i) * a->out_stride, 0, (size_t)(a->group * a->head_dim) * sizeof *a->out);
        }
        for (int64_t s = k.first / MX_SEGMENT; s <= k.last / MX_SEGMENT; s++) {
            attend_segment(&k, s);
            for (mx_queries *b = k.batch; b < k.batch + k.batches; b++) {
                for (int i = 0; i < b->count; i++) {
                    if (sees(b, i, s))
                        tier->take(b->out[i], &b->row_m[i], &b->row_l[i], b->o + i * tier->lanes,
                                   b->count * tier->lanes, b->m[i], b->l[i], a->head_dim);
                }
            }
        }
        for (mx_queries *b = k.batch; b < k.batch + k.batches; b++) {
            for (int i = 0; i < b->count; i++) tier->finish(b->out[i], b->row_l[i], a->head_dim);
        }
    }
}

/* A part: o [group][head_dim], m [group], l [group]. */
static float *part_at(const mx_attention *a, int64_t row, int64_t segment) {
    return a->parts + (row * a->segments + segment - a->first_segment) * mx_attention_part(a->head_dim, a->group);
}

/* o of query vector j. */
static void take_out(float *out, const mx_queries *b, int64_t j, int64_t lanes, int64_t head_dim) {
    const float *o = b->o + j * lanes;
    for (int64_t d = 0; d < head_dim; d += lanes, o += b->count * lanes) {
        int64_t rest = head_dim - d;
        memcpy(out + d, o, (size_t)(rest < lanes ? rest : lanes) * sizeof *out);
    }
}

void mx_walk_attention_segment(const mx_attention *a, int64_t segment, const mx_attention_tier *tier) {
    for (int64_t row = 0; row < a->rows; row += rows_at_once(a->group)) {
        block k = block_make(a, tier, row);
        attend_segment(&k, segment);
        int64_t i = 0;
        for (mx_queries *b = k.batch; b < k.batch + k.batches; b++) {
            for (int j = 0; j < b->count; j++, i++) {
                int64_t head = i % a->group;
                float *part = part_at(a, row + i / a->group, segment), *m = part + a->group * a->head_dim;
                take_out(part + head * a->head_dim, b, j, tier->lanes, a->head_dim);
                m[head] = b->m[j];
                m[a->group + head] = b->l[j];
            }
        }
    }
}

void mx_walk_attention_join(const mx_attention *a, const mx_attention_tier *tier) {
    for (int64_t row = 0; row < a->rows; row++) {
        int64_t last = a->position + row, first = first_seen(a, last);
        for (int64_t head = 0; head < a->group; head++) {
            float *out = a->out + row * a->out_stride + head * a->head_dim, m = sink_of(a, head), l = 1.0f;
            memset(out, 0, (size_t)a->head_dim * sizeof *out);
            for (int64_t s = first / MX_SEGMENT; s <= last / MX_SEGMENT; s++) {
                const float *part = part_at(a, row, s), *part_m = part + a->group * a->head_dim;
                tier->take(out, &m, &l, part + head * a->head_dim, tier->lanes, part_m[head], part_m[a->group + head],
                           a->head_dim);
            }
            tier->finish(out, l, a->head_dim);
        }
    }
}
