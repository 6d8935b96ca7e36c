#include "quantize/shared_scale.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 16, KEY = 220 };

typedef struct member {
    char key[KEY]; /* the same for all that share */
    int work;
} member;

struct mx_shared_scale {
    const mx_plan *plan;
    member *member; /* [members] by key */
    int members;
    float *largest; /* [works]; negative: not known yet */
};

/* "...self_attn.q_proj" to "...self_attn.qkv". false: it shares with none. */
static bool key_of(const char *name, char out[KEY]) {
    static const char *const parts[][2] = {{"q_proj", "qkv"},        {"k_proj", "qkv"},      {"v_proj", "qkv"},
                                           {"gate_proj", "gate_up"}, {"up_proj", "gate_up"}, {"w1", "gate_up"},
                                           {"w3", "gate_up"}};
    const char *dot = strrchr(name, '.'), *last = dot ? dot + 1 : name;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        if (strcmp(last, parts[i][0])) continue;
        snprintf(out, KEY, "%.*s%s", (int)(last - name), name, parts[i][1]);
        return true;
    }
    return false;
}

/* Each matrix looks for a scale of its own where tensor-search is asked for. */
static bool shares(const mx_work *w) {
    const mx_form *f = &w->choice.form;
    return w->pair < 0 && f->format == MX_E2M1 && f->blocks.scale == MX_SCALE_E4M3 && !w->choice.recipe.tensor_search;
}

static int by_key(const void *a, const void *b) {
    const member *x = a, *y = b;
    const int order = strcmp(x->key, y->key);
    return order ? order : (x->work > y->work) - (x->work < y->work);
}

mx_status mx_shared_scale_create(const mx_plan *p, mx_shared_scale **out, mx_error *error) {
    mx_shared_scale *s = *out = calloc(1, sizeof *s);
    if (s) s->member = malloc((size_t)p->works * sizeof *s->member + 1);
    if (s) s->largest = malloc((size_t)p->works * sizeof *s->largest + 1);
    if (!s || !s->member || !s->largest)
        return mx_fail(error, MX_NO_MEMORY, "%s: no memory for a list", p->source->path);
    s->plan = p;
    for (int i = 0; i < p->works; i++) {
        member *m = &s->member[s->members];
        s->largest[i] = -1;
        m->work = i;
        s->members += shares(&p->work[i]) && key_of(p->source->module[p->work[i].module].name, m->key);
    }
    if (s->members) qsort(s->member, (size_t)s->members, sizeof *s->member, by_key);
    return MX_OK;
}

void mx_shared_scale_free(mx_shared_scale *s) {
    if (!s) return;
    free(s->member);
    free(s->largest);
    free(s);
}

typedef struct looking {
    const mx_module *module;
    const volatile sig_atomic_t *stop;
    float *rows, *largest; /* [threads, ROWS, cols], [threads] */
} looking;

/* The bits of |x| are in the order of the numbers; those of infinity and NaN count as 0. For the compiler to make
 * vectors of. */
static uint32_t largest_bits(const float *x, int64_t n, uint32_t most) {
    for (int64_t k = 0; k < n; k++) {
        uint32_t bits;
        memcpy(&bits, &x[k], sizeof bits);
        bits &= 0x7fffffff;
        bits = bits < 0x7f800000 ? bits : 0;
        most = bits > most ? bits : most;
    }
    return most;
}

static void look(void *arg, int64_t begin, int64_t end, int thread) {
    const looking *l = arg;
    const mx_module *m = l->module;
    float *x = l->rows + (int64_t)thread * ROWS * m->cols;
    uint32_t most;
    memcpy(&most, &l->largest[thread], sizeof most);
    for (int64_t n = begin * ROWS; n < end * ROWS && n < m->rows && !(l->stop && *l->stop); n += ROWS) {
        const int64_t count = m->rows - n < ROWS ? m->rows - n : ROWS;
        m->read(m->user, n, count, x);
        most = largest_bits(x, count * m->cols, most);
    }
    memcpy(&l->largest[thread], &most, sizeof most);
}

typedef struct scanning {
    const uint8_t *from;
    int64_t count;
    uint16_t infinite; /* bits of infinity */
    const volatile sig_atomic_t *stop;
    uint16_t *most; /* [threads] */
} scanning;

enum { SCAN = 1 << 16 };

static void scan(void *arg, int64_t begin, int64_t end, int thread) {
    const scanning *s = arg;
    uint16_t most = s->most[thread];
    for (int64_t i = begin * SCAN; i < end * SCAN && i < s->count && !(s->stop && *s->stop); i += SCAN) {
        const int64_t count = s->count - i < SCAN ? s->count - i : SCAN;
        for (int64_t k = 0; k < count; k++) {
            uint16_t bits;
            memcpy(&bits, s->from + 2 * (i + k), sizeof bits);
            bits &= 0x7fff;
            bits = bits < s->infinite ? bits : 0;
            most = bits > most ? bits : most;
        }
    }
    s->most[thread] = most;
}

/* Of gate and up together where they lie so. */
static mx_status measure_plain(const mx_module *m, const uint8_t *from, mx_dtype dtype, int64_t count,
                               const mx_model_options *o, float *out, mx_error *error) {
    const int threads = mx_pool_threads(o->pool);
    const bool f16 = dtype == MX_DTYPE_F16;
    scanning s = {.from = from,
                  .count = count,
                  .infinite = f16 ? 0x7c00 : 0x7f80,
                  .stop = o->stop,
                  .most = calloc((size_t)threads, sizeof *s.most)};
    if (!s.most) return mx_fail(error, MX_NO_MEMORY, "%s: no memory to look at it", m->name);
    mx_parallel_for(o->pool, (count + SCAN - 1) / SCAN, 1, scan, &s);
    uint16_t most = 0;
    for (int i = 0; i < threads; i++) most = s.most[i] > most ? s.most[i] : most;
    *out = f16 ? mx_f16_to_f32(most) : mx_bf16_to_f32(most);
    free(s.most);
    return o->stop && *o->stop ? mx_fail(error, MX_CANCELLED, "interrupted") : MX_OK;
}

static mx_status measure(const mx_module *m, const mx_model_options *o, float *out, mx_error *error) {
    const int threads = mx_pool_threads(o->pool);
    mx_dtype dtype;
    int64_t count;
    const uint8_t *plain = mx_module_plain(m, &dtype, &count);
    if (plain) return measure_plain(m, plain, dtype, count, o, out, error);
    looking l = {.module = m,
                 .stop = o->stop,
                 .rows = malloc((size_t)threads * ROWS * (size_t)m->cols * sizeof *l.rows),
                 .largest = calloc((size_t)threads, sizeof *l.largest)};
    mx_status status = MX_OK;
    if (!l.rows || !l.largest) {
        status = mx_fail(error, MX_NO_MEMORY, "%s: no memory for its rows", m->name);
    } else {
        mx_parallel_for(o->pool, (m->rows + ROWS - 1) / ROWS, 1, look, &l);
        *out = 0;
        for (int i = 0; i < threads; i++) *out = fmaxf(*out, l.largest[i]);
        if (o->stop && *o->stop) status = mx_fail(error, MX_CANCELLED, "interrupted");
    }
    free(l.rows);
    free(l.largest);
    return status;
}

mx_status mx_shared_scale_largest(mx_shared_scale *s, int index, const mx_model_options *options, float *out,
                                  mx_error *error) {
    const mx_plan *p = s->plan;
    member key = {.work = index};
    *out = 0;
    if (!shares(&p->work[index]) || !key_of(p->source->module[p->work[index].module].name, key.key)) return MX_OK;
    const member *first = bsearch(&key, s->member, (size_t)s->members, sizeof key, by_key), *end = first;
    while (first > s->member && !strcmp(first[-1].key, key.key)) first--;
    while (end < s->member + s->members && !strcmp(end->key, key.key)) end++;
    if (end - first < 2) return MX_OK;
    mx_status status = MX_OK;
    for (; first < end && !status; first++) {
        float *largest = &s->largest[first->work];
        if (*largest < 0) status = measure(&p->source->module[p->work[first->work].module], options, largest, error);
        *out = fmaxf(*out, *largest);
    }
    return status;
}
