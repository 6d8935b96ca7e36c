/* Drawing tokens by the rules of model/sampler.c, and the likeliest ones.
 *
 * A row of logits is cut into chunks. Four launches, always the same ones: survey (a block for each chunk of each draw:
 * adjusted logits, maxima, sums of exponentials relative to the chunk's largest), merge (a block for each draw: the
 * normaliser; greedy draws end here), weigh (chunks again: weights relative to the row's largest, and the candidates
 * for top-k and top-p listed), finish (a block for each draw: top-k, top-p, min-p and the draw).
 *
 * Weights become integers before they are added (see units_of), so that no order of adding matters: sums may be taken
 * by atomics, in parallel scans and from lists of any length, and have one value. Top-k and top-p are one selection,
 * of the fewest best candidates with so many tokens or so much weight; as both take a beginning of the same order
 * (logit, then id), what is left of the candidates is described by the last of them alone. */
#include <float.h>

#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/device.cuh"

namespace {

enum {
    CHUNK = 2048,
    CHUNKS = MX_CUDA_MOST_VOCAB / CHUNK, /* at most */
    WIDE = 256,                          /* threads of survey and weigh */
    EACH = CHUNK / WIDE,                 /* tokens of a thread there: id = start + i * WIDE + thread */
    WIDE_WARPS = WIDE / 32,
    GROUPS = WIDE / 8, /* eight neighbouring threads know the largest of their tokens together */
    DEEP = 512,        /* threads of merge and finish */
    DEEP_WARPS = DEEP / 32,
    HELD = 2048, /* candidates that finish keeps in shared memory */
    ID_BITS = 20,
    BUCKETS = 2048,
};
static_assert(CHUNKS <= DEEP, "merge and finish have a thread for each chunk");
static_assert(MX_CUDA_MOST_VOCAB == 1 << ID_BITS, "ids in orders");
static_assert(HELD == CHUNK && CHUNK % DEEP == 0 && BUCKETS % DEEP == 0, "shares of a thread");

constexpr uint32_t NO_TOKEN = 0xffffffffu, DENSE = 0xffffffffu;

/* ---- what launches leave for each other ---- */
struct chunk_info {
    uint64_t raw_sum; /* units of exp(logit - raw_largest), unchanged logits */
    uint64_t sum;     /* units of exp((x - largest) * scale), adjusted; where merge needs it */
    uint64_t mass;    /* the same relative to the row's largest (weigh) */
    float raw_largest, largest;
    int32_t best;    /* the lowest id that has `largest` */
    uint32_t bad;    /* the lowest id whose logit is not finite, or NO_TOKEN */
    uint32_t listed; /* candidates, as pairs (x, id) in the chunk's place in scratch; DENSE: they were too many */
    uint32_t unused;
};

enum { DONE, PLAIN, CUT };
struct draw_info {
    double log_sum;
    float raw_largest;  /* logprob = logit - raw_largest - log_sum */
    float shift, scale; /* weight = exp((x - shift) * scale) */
    float least;        /* no candidate lies below */
    int32_t kind;       /* DONE: nothing left to do; PLAIN: no top-k, no top-p */
    int32_t unused;
};

MX_BOTH int64_t padded(int64_t floats) {
    return (floats + 63) / 64 * 64;
}
MX_BOTH int chunks_of(int vocab) {
    return (vocab + CHUNK - 1) / CHUNK;
}
/* Of one draw: adjusted logits or lists [vocab], draw_info, chunk_info [chunks], largest of each group [chunks,
 * GROUPS]. */
MX_BOTH int64_t scratch_floats(int vocab) {
    const int64_t chunk = (int64_t)sizeof(chunk_info) / 4 + GROUPS;
    return padded(padded(vocab) + 64 + chunks_of(vocab) * chunk);
}
static_assert(sizeof(draw_info) <= 256 && sizeof(chunk_info) % 16 == 0, "places in scratch");

struct places {
    float *x;
    draw_info *info;
    chunk_info *chunk;
    float *group;
};
MX_DEVICE places places_of(float *scratch, int vocab, int64_t draw) {
    places p;
    p.x = scratch + draw * scratch_floats(vocab);
    p.info = (draw_info *)(p.x + padded(vocab));
    p.chunk = (chunk_info *)(p.x + padded(vocab) + 64);
    p.group = (float *)(p.chunk + chunks_of(vocab));
    return p;
}

/* ---- numbers ---- */
MX_DEVICE float weight_of(float x, float shift, float scale) {
    return expf((x - shift) * scale);
}
/* A weight (0 to 1) in units of which a vocabulary of ones stays below 2^64: `unit` is 2^45 for 201,088 tokens. Weights
 * from 2^-21 on are whole numbers then, and all the smaller ones together lose less than 3e-9. */
MX_DEVICE uint64_t units_of(float weight, float unit) {
    return (uint64_t)rintf(weight * unit);
}
float unit_for(int vocab) {
    int bits = 63;
    while (bits > 0 && ((int64_t)1 << (63 - bits)) < vocab) bits--;
    return ldexpf(1.0f, bits);
}

/* A number that sorts like the float; both zeros are one. */
MX_DEVICE uint32_t sort_key(float v) {
    const uint32_t bits = mx_bits(v + 0.0f);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
MX_DEVICE float value_of(uint32_t key) {
    return mx_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}
/* The better candidate has the larger one: larger logit, then lower id. */
MX_DEVICE uint64_t order_of(float x, int id) {
    return (uint64_t)sort_key(x) << ID_BITS | (uint64_t)(MX_CUDA_MOST_VOCAB - 1 - id);
}

MX_DEVICE float saturate(float v) {
    return fminf(fmaxf(v, -FLT_MAX), FLT_MAX);
}
MX_DEVICE bool is_finite(float v) {
    return (mx_bits(v) & 0x7f800000u) != 0x7f800000u;
}
MX_DEVICE float logprob_of(const draw_info &n, float logit) {
    return (float)((double)logit - (double)n.raw_largest - n.log_sum);
}

/* ---- what a draw asks for ---- */
MX_DEVICE bool penalises(const mx_cuda_draw &d) {
    return d.presence_penalty != 0 || d.frequency_penalty != 0;
}
MX_DEVICE bool adjusts(const mx_cuda_draw &d) {
    return d.bias_count > 0 || (d.repetition_penalty != 1 && d.seen_count > 0) ||
           (penalises(d) && d.generated_count > 0) || d.mask != nullptr;
}
MX_DEVICE bool is_greedy(const mx_cuda_draw &d) {
    return !(d.temperature > 0) || d.top_k == 1;
}
MX_DEVICE bool counts(const mx_cuda_draw &d, int vocab) {
    return d.top_k > 0 && d.top_k < vocab;
}
MX_DEVICE float scale_of(const mx_cuda_draw &d) {
    return fminf(1 / d.temperature, FLT_MAX);
}
MX_DEVICE const float *row_of(const float *logits, int vocab, const mx_cuda_draw *d) {
    return d ? logits + (int64_t)d->wanted * vocab : logits;
}

/* ---- over warps and blocks ---- */
struct best_of {
    float x;
    int32_t id;
};
MX_DEVICE best_of better(best_of a, best_of b) {
    return b.x > a.x || (b.x == a.x && b.id < a.id) ? b : a;
}
MX_DEVICE best_of best_over(best_of v, int mask) {
    best_of other;
    other.x = mx_shuffle_xor(v.x, mask);
    other.id = mx_shuffle_xor(v.id, mask);
    return better(v, other);
}
MX_DEVICE uint32_t lowest_in_warp(uint32_t v) {
    MX_UNROLL
    for (int mask = 16; mask > 0; mask /= 2) {
        const uint32_t other = mx_shuffle_xor(v, mask);
        v = other < v ? other : v;
    }
    return v;
}
template <typename T> MX_DEVICE T sum_in_warp(T v) {
    MX_UNROLL
    for (int mask = 16; mask > 0; mask /= 2) v += mx_shuffle_xor(v, mask);
    return v;
}

/* Numbers of candidates and units of weight. */
struct amount {
    uint64_t n, mass;
};
/* The sum over the threads before this one of a DEEP block; *total: over all. `part` [DEEP_WARPS] is shared. */
MX_DEVICE amount sum_before(amount own, amount *total, amount *part) {
    amount upto = own, all = {0, 0};
    MX_UNROLL
    for (int delta = 1; delta < 32; delta *= 2) {
        const uint64_t n = mx_shuffle_up(upto.n, delta), mass = mx_shuffle_up(upto.mass, delta);
        upto.n += mx_lane() >= delta ? n : 0;
        upto.mass += mx_lane() >= delta ? mass : 0;
    }
    mx_sync(); /* nobody reads an earlier sum's parts any more */
    if (mx_lane() == 31) part[mx_warp()] = upto;
    mx_sync();
    amount before = {upto.n - own.n, upto.mass - own.mass};
    for (int w = 0; w < DEEP_WARPS; w++) {
        before.n += w < mx_warp() ? part[w].n : 0;
        before.mass += w < mx_warp() ? part[w].mass : 0;
        all.n += part[w].n;
        all.mass += part[w].mass;
    }
    *total = all;
    return before;
}

/* ---- survey ---- */
/* Bias, penalties and mask on x [CHUNK], shared: the tokens start .. end - 1, in the order of model/sampler.c. A token
 * may have several biases, which are added one by one; in the other lists it stands once. Begins and ends in step. */
MX_DEVICE void adjust_chunk(float *x, int start, int end, const mx_cuda_draw &d) {
    mx_sync();
    for (int i = 0; i < d.bias_count; i++) {
        const int token = d.bias[i].token;
        if (token >= start && token < end && (token - start) % WIDE == (int)threadIdx.x)
            x[token - start] = saturate(x[token - start] + d.bias[i].value);
    }
    mx_sync();
    for (int64_t i = threadIdx.x; d.repetition_penalty != 1 && i < d.seen_count; i += WIDE) {
        const int token = d.seen[i].token;
        if (token < start || token >= end) continue;
        const float v = x[token - start];
        x[token - start] = saturate(v > 0 ? v / d.repetition_penalty : v * d.repetition_penalty);
    }
    mx_sync();
    for (int64_t i = threadIdx.x; penalises(d) && i < d.generated_count; i += WIDE) {
        const int token = d.generated[i].token;
        if (token < start || token >= end) continue;
        /* in double the product is exact: rounded once, and not made one operation with the subtraction */
        const float often = (float)((double)d.frequency_penalty * (double)(float)d.generated[i].count);
        x[token - start] = saturate(x[token - start] - d.presence_penalty - often);
    }
    mx_sync();
}

struct surveyed {
    float raw;
    best_of best;
    uint32_t bad;
};

/* Over the block; every thread gets the result. `part` [WIDE_WARPS] is shared, `group` [GROUPS] in scratch. */
MX_DEVICE surveyed survey_block(surveyed own, surveyed *part, float *group) {
    own.raw = mx_warp_max(own.raw);
    own.bad = lowest_in_warp(own.bad);
    MX_UNROLL
    for (int mask = 1; mask < 32; mask *= 2) {
        if (mask == 8 && threadIdx.x % 8 == 0) group[threadIdx.x / 8] = own.best.x;
        own.best = best_over(own.best, mask);
    }
    if (mx_lane() == 0) part[mx_warp()] = own;
    mx_sync();
    surveyed all = part[0];
    for (int w = 1; w < WIDE_WARPS; w++) {
        all.raw = fmaxf(all.raw, part[w].raw);
        all.best = better(all.best, part[w].best);
        all.bad = part[w].bad < all.bad ? part[w].bad : all.bad;
    }
    return all;
}

/* Grid: chunks x draws. draw NULL: one row, as it is. */
__global__ void __launch_bounds__(WIDE)
    survey(const float *logits, int vocab, const mx_cuda_draw *draw, float *scratch, float unit) {
    mx_begin();
    __shared__ float held[CHUNK];
    __shared__ surveyed part[WIDE_WARPS];
    __shared__ uint64_t sums[2][WIDE_WARPS];
    const mx_cuda_draw *d = draw ? draw + blockIdx.y : nullptr;
    if (d && d->wanted < 0) return;
    const float *row = row_of(logits, vocab, d);
    const places p = places_of(scratch, vocab, blockIdx.y);
    const int t = threadIdx.x, start = blockIdx.x * CHUNK, end = vocab - start < CHUNK ? vocab : start + CHUNK;

    float raw[EACH], x[EACH];
    surveyed own = {-INFINITY, {-INFINITY, INT32_MAX}, NO_TOKEN};
    MX_UNROLL
    for (int i = 0; i < EACH; i++) raw[i] = start + i * WIDE + t < end ? row[start + i * WIDE + t] : -INFINITY;
    MX_UNROLL
    for (int i = 0; i < EACH; i++) {
        const int id = start + i * WIDE + t;
        if (id < end && !is_finite(raw[i])) {
            own.bad = (uint32_t)id < own.bad ? (uint32_t)id : own.bad;
            raw[i] = -INFINITY;
        }
        own.raw = fmaxf(own.raw, raw[i]);
        x[i] = raw[i];
    }
    if (d && adjusts(*d)) {
        MX_UNROLL
        for (int i = 0; i < EACH; i++) held[i * WIDE + t] = raw[i];
        adjust_chunk(held, start, end, *d);
        MX_UNROLL
        for (int i = 0; i < EACH; i++) {
            const int id = start + i * WIDE + t;
            if (id >= end) continue;
            x[i] = d->mask && !(d->mask[id >> 5] >> (id & 31) & 1) ? -INFINITY : held[i * WIDE + t];
            p.x[id] = x[i];
        }
    }
    MX_UNROLL
    for (int i = 0; i < EACH; i++) own.best = better(own.best, {x[i], start + i * WIDE + t});
    const surveyed all = survey_block(own, part, p.group + (int64_t)blockIdx.x * GROUPS);

    const bool tempered = d && !is_greedy(*d) && d->top_p < 1 && !counts(*d, vocab) && all.best.x > -INFINITY;
    const float scale = tempered ? scale_of(*d) : 0;
    uint64_t raw_sum = 0, sum = 0;
    MX_UNROLL
    for (int i = 0; i < EACH; i++) {
        if (all.raw > -INFINITY) raw_sum += units_of(weight_of(raw[i], all.raw, 1), unit);
        if (tempered) sum += x[i] > -INFINITY ? units_of(weight_of(x[i], all.best.x, scale), unit) : 0;
    }
    raw_sum = sum_in_warp(raw_sum);
    sum = sum_in_warp(sum);
    if (mx_lane() == 0) {
        sums[0][mx_warp()] = raw_sum;
        sums[1][mx_warp()] = sum;
    }
    mx_sync();
    if (t == 0) {
        for (int w = 1; w < WIDE_WARPS; w++) {
            raw_sum += sums[0][w];
            sum += sums[1][w];
        }
        p.chunk[blockIdx.x] = {raw_sum, sum, 0, all.raw, all.best.x, all.best.id, all.bad, 0, 0};
    }
}

/* ---- selection ---- */
struct histogram {
    uint32_t count[BUCKETS], low[BUCKETS], high[BUCKETS]; /* the weight's two words */
    amount part[DEEP_WARPS];
    amount above; /* of the bucket found: what lies above it, what is in it, which one it is */
    amount inside;
    uint32_t bucket;
};

MX_DEVICE void add_weight(histogram *h, uint32_t bucket, uint64_t units) {
    const uint32_t low = (uint32_t)units, old = mx_atomic_add(&h->low[bucket], low);
    const uint32_t high = (uint32_t)(units >> 32) + (old + low < old);
    if (high) mx_atomic_add(&h->high[bucket], high);
}

struct selection {
    uint64_t last; /* the order_of of the last one selected, or a number between it and the next one */
    amount all;    /* of all items */
    uint64_t mass; /* of the selected ones */
};

/* The fewest best items of which there are `need`, or, where `by_mass`, that have `need` units of weight; all, where
 * they do not reach it. items.each(f) calls f(x, id, units) for each, by any thread of the DEEP block. A radix
 * selection over order_of, 11 + 11 + 10 bits of the logit, then 10 + 10 of the id, which ends where a bucket need not
 * be divided. */
template <typename ITEMS> MX_DEVICE selection select(const ITEMS &items, bool by_mass, uint64_t need, histogram *h) {
    enum { SHARE = BUCKETS / DEEP };
    selection s = {0, {0, 0}, 0};
    amount above = {0, 0};
    int low = 32 + ID_BITS;
    for (int level = 0; low > 0; level++) {
        const int bits = level < 2 ? 11 : 10;
        const uint64_t prefix = s.last >> low;
        low -= bits;
        mx_sync();
        for (int b = threadIdx.x; b < BUCKETS; b += DEEP) h->count[b] = h->low[b] = h->high[b] = 0;
        mx_sync();
        items.each([&](float x, int id, uint64_t units) {
            const uint64_t order = order_of(x, id);
            if (order >> bits >> low != prefix) return;
            const uint32_t bucket = (uint32_t)(order >> low) & ((1u << bits) - 1);
            mx_atomic_add(&h->count[bucket], 1);
            add_weight(h, bucket, units);
        });
        mx_sync();
        /* A thread has SHARE buckets, the first thread the uppermost. */
        const int top = BUCKETS - 1 - SHARE * (int)threadIdx.x;
        amount own = {0, 0}, all;
        for (int b = top; b > top - SHARE; b--) {
            own.n += h->count[b];
            own.mass += (uint64_t)h->high[b] << 32 | h->low[b];
        }
        amount upto = sum_before(own, &all, h->part);
        if (level == 0) {
            s.all = all;
            const uint64_t most = by_mass ? all.mass : all.n;
            need = need < most ? need : most;
        }
        upto.n += above.n;
        upto.mass += above.mass;
        for (int b = top; b > top - SHARE; b--) {
            const amount inside = {h->count[b], (uint64_t)h->high[b] << 32 | h->low[b]};
            const uint64_t before = by_mass ? upto.mass : upto.n, here = by_mass ? inside.mass : inside.n;
            if (before < need && need <= before + here) {
                h->above = upto;
                h->inside = inside;
                h->bucket = (uint32_t)b;
            }
            upto.n += inside.n;
            upto.mass += inside.mass;
        }
        mx_sync();
        if (need == 0) return s; /* there is nothing to select from */
        above = h->above;
        s.last |= (uint64_t)h->bucket << low;
        s.mass = above.mass + h->inside.mass;
        if (h->inside.n == 1 || (by_mass ? s.mass : above.n + h->inside.n) == need) break;
    }
    return s;
}

/* ---- merge ---- */
/* The largest of each group of tokens as items: the k-th largest of them is a bound for the k-th largest token. */
struct group_items {
    const float *group;
    int count;
    template <typename F> __device__ __forceinline__ void each(const F &f) const {
        for (int i = threadIdx.x; i < count; i += DEEP) {
            if (group[i] > -INFINITY) f(group[i], i, 0);
        }
    }
};

/* No candidate below it is needed: what lies below has together less than what top-p leaves out. As least_needed in
 * model/sampler.c; `sum`: of all weights, relative to the largest. */
MX_DEVICE float least_for_mass(float shift, float scale, double sum, float top_p, int vocab) {
    const double spare = sum * 0.999 * (1 - (double)top_p * (1 - FLT_EPSILON));
    const double least = (double)shift + log(spare / 2 / vocab) / (double)scale;
    return (float)fmax(least - fabs(least) * 2 * FLT_EPSILON, (double)-FLT_MAX);
}

struct merged {
    surveyed found;
    double raw_sum, sum; /* relative to the largest of the row */
};

/* A thread has a chunk. Every thread of the DEEP block gets the result. */
MX_DEVICE merged merge_chunks(const chunk_info *chunk, int chunks, float scale, float unit, surveyed *part,
                              double (*sums)[DEEP_WARPS]) {
    merged m = {{-INFINITY, {-INFINITY, INT32_MAX}, NO_TOKEN}, 0, 0};
    chunk_info c = {};
    c.raw_largest = c.largest = -INFINITY;
    c.best = INT32_MAX;
    c.bad = NO_TOKEN;
    if ((int)threadIdx.x < chunks) c = chunk[threadIdx.x];
    surveyed own = {mx_warp_max(c.raw_largest), {c.largest, c.best}, lowest_in_warp(c.bad)};
    MX_UNROLL
    for (int mask = 1; mask < 32; mask *= 2) own.best = best_over(own.best, mask);
    if (mx_lane() == 0) part[mx_warp()] = own;
    mx_sync();
    for (int w = 0; w < DEEP_WARPS; w++) {
        m.found.raw = fmaxf(m.found.raw, part[w].raw);
        m.found.best = better(m.found.best, part[w].best);
        m.found.bad = part[w].bad < m.found.bad ? part[w].bad : m.found.bad;
    }
    double raw_sum = 0, sum = 0;
    if (c.raw_sum > 0) raw_sum = (double)c.raw_sum / unit * exp((double)c.raw_largest - m.found.raw);
    if (c.sum > 0) sum = (double)c.sum / unit * exp(((double)c.largest - m.found.best.x) * scale);
    raw_sum = sum_in_warp(raw_sum);
    sum = sum_in_warp(sum);
    if (mx_lane() == 0) {
        sums[0][mx_warp()] = raw_sum;
        sums[1][mx_warp()] = sum;
    }
    mx_sync();
    for (int w = 0; w < DEEP_WARPS; w++) {
        m.raw_sum += sums[0][w];
        m.sum += sums[1][w];
    }
    return m;
}

/* A block for each draw. draw NULL: the row's `top` likeliest, and in drawn the logprob of `asked`. */
__global__ void __launch_bounds__(DEEP, 1)
    merge(const float *logits, int vocab, const mx_cuda_draw *draw, int top, int32_t asked, float *scratch, float unit,
          mx_cuda_drawn *drawn, int32_t *token) {
    mx_begin();
    __shared__ surveyed part[DEEP_WARPS];
    __shared__ double sums[2][DEEP_WARPS];
    __shared__ histogram h;
    const mx_cuda_draw *d = draw ? draw + blockIdx.x : nullptr;
    if (d && d->wanted < 0) return;
    const places p = places_of(scratch, vocab, blockIdx.x);
    const bool draws = d && !is_greedy(*d);
    const float scale = draws ? scale_of(*d) : 1;
    const merged m = merge_chunks(p.chunk, chunks_of(vocab), scale, unit, part, sums);

    draw_info info = {log(m.raw_sum), m.found.raw, m.found.best.x, scale, -FLT_MAX, DONE, 0};
    const int state = m.found.bad != NO_TOKEN       ? MX_CUDA_NOT_FINITE
                      : m.found.best.x == -INFINITY ? MX_CUDA_NONE_LEFT
                                                    : MX_CUDA_DRAWN;
    const int count = d ? (draws && counts(*d, vocab) ? d->top_k : 0) : top;
    if (state == MX_CUDA_DRAWN && (draws || top > 0)) {
        info.kind = count > 0 || d->top_p < 1 ? CUT : PLAIN;
        if (count > 0) {
            const group_items groups = {p.group, chunks_of(vocab) * GROUPS};
            const selection s = select(groups, false, (uint64_t)count, &h);
            if (s.all.n >= (uint64_t)count) info.least = value_of((uint32_t)(s.last >> ID_BITS));
        } else if (info.kind == CUT) {
            info.least = least_for_mass(info.shift, scale, m.sum, d->top_p, vocab);
        }
    }
    if (threadIdx.x != 0) return;
    *p.info = info;
    if (state == MX_CUDA_DRAWN && draws) return;
    int32_t id = m.found.best.id;
    if (state == MX_CUDA_NOT_FINITE) id = (int32_t)m.found.bad;
    if (state == MX_CUDA_NONE_LEFT) id = 0;
    if (!d && state == MX_CUDA_DRAWN) id = asked;
    const float *row = row_of(logits, vocab, d);
    const float x = state == MX_CUDA_NONE_LEFT || id < 0 ? 0 : row[id];
    drawn[blockIdx.x] = {id, state == MX_CUDA_DRAWN && id >= 0 ? logprob_of(info, x) : x, state};
    if (token) token[blockIdx.x] = id;
}

/* ---- weigh ---- */
/* Writes those of x that are not below `least` as pairs (x, id), ids ascending, to `to` [length] and returns their
 * number, or DENSE if there is no room. `count` [EACH][WIDE_WARPS] is shared. */
MX_DEVICE uint32_t list_chunk(const float (&x)[EACH], int start, float least, float *to, int length,
                              uint32_t (*count)[WIDE_WARPS]) {
    uint32_t votes[EACH], first[EACH], total = 0;
    MX_UNROLL
    for (int i = 0; i < EACH; i++) {
        votes[i] = mx_ballot(x[i] >= least);
        if (mx_lane() == 0) count[i][mx_warp()] = (uint32_t)mx_count_bits(votes[i]);
    }
    mx_sync(); /* and everybody has read what `to` held */
    MX_UNROLL
    for (int i = 0; i < EACH; i++) {
        for (int w = 0; w < WIDE_WARPS; w++) {
            if (w == mx_warp()) first[i] = total;
            total += count[i][w];
        }
    }
    if (2 * total > (uint32_t)length) return DENSE;
    MX_UNROLL
    for (int i = 0; i < EACH; i++) {
        if (!(votes[i] >> mx_lane() & 1)) continue;
        const uint32_t at = first[i] + (uint32_t)mx_count_bits(votes[i] & ((1u << mx_lane()) - 1));
        to[2 * at] = x[i];
        to[2 * at + 1] = mx_float((uint32_t)(start + i * WIDE) + threadIdx.x);
    }
    return total;
}

/* Grid: chunks x draws. */
__global__ void __launch_bounds__(WIDE)
    weigh(const float *logits, int vocab, const mx_cuda_draw *draw, float *scratch, float unit) {
    mx_begin();
    __shared__ uint32_t count[EACH][WIDE_WARPS];
    __shared__ uint64_t sums[WIDE_WARPS];
    const mx_cuda_draw *d = draw ? draw + blockIdx.y : nullptr;
    if (d && (d->wanted < 0 || is_greedy(*d))) return;
    const places p = places_of(scratch, vocab, blockIdx.y);
    const draw_info info = *p.info;
    if (info.kind == DONE) return;
    const float *from = d && adjusts(*d) ? p.x : row_of(logits, vocab, d);
    const int t = threadIdx.x, start = blockIdx.x * CHUNK, end = vocab - start < CHUNK ? vocab : start + CHUNK;
    const float min_p = d && info.kind == PLAIN ? d->min_p : 0;

    float x[EACH];
    uint64_t mass = 0;
    uint32_t listed = 0;
    MX_UNROLL
    for (int i = 0; i < EACH; i++) x[i] = start + i * WIDE + t < end ? from[start + i * WIDE + t] : -INFINITY;
    if (d) {
        MX_UNROLL
        for (int i = 0; i < EACH; i++) {
            const float weight = weight_of(x[i], info.shift, info.scale);
            mass += weight < min_p ? 0 : units_of(weight, unit);
        }
        mass = sum_in_warp(mass);
        if (mx_lane() == 0) sums[mx_warp()] = mass;
    }
    mx_sync();
    if (info.kind == CUT) listed = list_chunk(x, start, info.least, p.x + start, end - start, count);
    if (t != 0) return;
    for (int w = 1; d && w < WIDE_WARPS; w++) mass += sums[w];
    p.chunk[blockIdx.x].mass = mass;
    p.chunk[blockIdx.x].listed = listed;
}

/* ---- finish ---- */
struct finishing {
    histogram h;
    float x[HELD];
    int32_t id[HELD];
    uint64_t first[CHUNKS]; /* where a chunk's list begins in x and id; then masses of chunks */
    int32_t chunk;
    uint64_t before;
    uint32_t found;
};

/* The candidates: in shared memory, ids ascending, where there are few enough, and else in the chunks. */
struct candidates {
    const float *from, *lists; /* [vocab] */
    const chunk_info *chunk;
    int vocab;
    float least, shift, scale, unit;
    bool plain; /* nothing was listed */
    const finishing *f;
    int held; /* in f->x and f->id; -1: they are in the chunks */

    __device__ __forceinline__ uint64_t units(float x) const {
        return unit > 0 ? units_of(weight_of(x, shift, scale), unit) : 0;
    }
    /* Item i of a chunk, or of the held ones; false: it is no candidate. */
    __device__ __forceinline__ bool get(int c, int i, float *x, int *id) const {
        const int start = c * CHUNK;
        if (held >= 0) {
            *x = f->x[i];
            *id = f->id[i];
        } else if (plain || chunk[c].listed == DENSE) {
            *x = from[start + i];
            *id = start + i;
        } else {
            *x = lists[start + 2 * i];
            *id = (int)mx_bits(lists[start + 2 * i + 1]);
        }
        return *x >= least;
    }
    __device__ __forceinline__ int items(int c) const {
        if (held >= 0) return held;
        if (!plain && chunk[c].listed != DENSE) return (int)chunk[c].listed;
        return vocab - c * CHUNK < CHUNK ? vocab - c * CHUNK : CHUNK;
    }
    template <typename F> __device__ __forceinline__ void each(const F &f_) const {
        float x;
        int id;
        for (int i = threadIdx.x; i < held; i += DEEP) f_(f->x[i], f->id[i], units(f->x[i]));
        for (int c = mx_warp(); held < 0 && c < chunks_of(vocab); c += DEEP_WARPS) {
            const int n = items(c);
            for (int i = mx_lane(); i < n; i += 32) {
                if (get(c, i, &x, &id)) f_(x, id, units(x));
            }
        }
    }
};

/* Brings what weigh listed into shared memory, if there is room. Ends in step. */
MX_DEVICE void gather(candidates *c, finishing *f) {
    const int chunks = chunks_of(c->vocab), t = threadIdx.x;
    amount own = {0, 0}, all;
    if (t < chunks) own.n = c->chunk[t].listed == DENSE ? HELD + 1 : c->chunk[t].listed;
    const amount before = sum_before(own, &all, f->h.part);
    if (all.n > HELD) return;
    if (t < chunks) f->first[t] = before.n;
    mx_sync();
    for (int i = mx_warp(); i < chunks; i += DEEP_WARPS) {
        const int n = (int)c->chunk[i].listed;
        for (int j = mx_lane(); j < n; j += 32) {
            float x;
            int id;
            c->get(i, j, &x, &id);
            f->x[f->first[i] + j] = x;
            f->id[f->first[i] + j] = id;
        }
    }
    mx_sync();
    c->held = (int)all.n;
}

/* Units of the sum over which u passes. */
MX_DEVICE uint64_t goal_of(double u, uint64_t total) {
    const uint64_t goal = (uint64_t)floor(u * (double)total);
    return goal < total ? goal : total - 1;
}

struct rules {
    uint64_t last; /* what comes behind it is cut off */
    float min_p;
};
MX_DEVICE uint64_t allowed_units(const candidates &c, const rules &r, float x, int id) {
    if (!(x >= c.least) || order_of(x, id) < r.last) return 0;
    const float weight = weight_of(x, c.shift, c.scale);
    return weight < r.min_p ? 0 : units_of(weight, c.unit);
}

/* The token of chunk `at` (or of the held ones) at which the sum of the weights, ids ascending, exceeds `goal`, or u of
 * all where u >= 0. Exactly one thread gets it, the others -1. */
MX_DEVICE int draw_among(const candidates &c, const rules &r, int at, uint64_t goal, double u, finishing *f) {
    enum { SHARE = CHUNK / DEEP };
    const int n = c.items(at), first = SHARE * (int)threadIdx.x;
    uint64_t units[SHARE];
    int id[SHARE];
    amount own = {0, 0}, all;
    MX_UNROLL
    for (int i = 0; i < SHARE; i++) {
        float x = 0;
        units[i] = 0;
        id[i] = -1;
        if (first + i < n && c.get(at, first + i, &x, &id[i])) units[i] = allowed_units(c, r, x, id[i]);
        own.mass += units[i];
    }
    uint64_t sum = sum_before(own, &all, f->h.part).mass;
    if (u >= 0) goal = goal_of(u, all.mass);
    int found = -1;
    MX_UNROLL
    for (int i = 0; i < SHARE; i++) {
        if (sum <= goal && goal < sum + units[i]) found = id[i];
        sum += units[i];
    }
    return found;
}

/* The same over all chunks. */
MX_DEVICE int draw_in_chunks(const candidates &c, const rules &r, double u, finishing *f) {
    const int chunks = chunks_of(c.vocab), t = threadIdx.x;
    mx_sync();
    for (int i = mx_warp(); !c.plain && i < chunks; i += DEEP_WARPS) {
        const int n = c.items(i);
        uint64_t mass = 0;
        for (int j = mx_lane(); j < n; j += 32) {
            float x;
            int id;
            if (c.get(i, j, &x, &id)) mass += allowed_units(c, r, x, id);
        }
        mass = sum_in_warp(mass);
        if (mx_lane() == 0) f->first[i] = mass;
    }
    if (c.plain && t < chunks) f->first[t] = c.chunk[t].mass;
    mx_sync();
    amount own = {0, t < chunks ? f->first[t] : 0}, all;
    const uint64_t before = sum_before(own, &all, f->h.part).mass, goal = goal_of(u, all.mass);
    if (before <= goal && goal < before + own.mass) {
        f->chunk = t;
        f->before = before;
    }
    mx_sync();
    return draw_among(c, r, f->chunk, goal - f->before, -1, f);
}

MX_DEVICE candidates candidates_of(const float *from, int vocab, const places &p, const draw_info &info, float unit,
                                   const finishing *f) {
    return {from, p.x, p.chunk, vocab, info.least, info.shift, info.scale, unit, info.kind == PLAIN, f, -1};
}

/* A block for each draw. */
__global__ void __launch_bounds__(DEEP, 1) finish(const float *logits, int vocab, const mx_cuda_draw *draw,
                                                  float *scratch, float unit, mx_cuda_drawn *drawn, int32_t *token) {
    mx_begin();
    __shared__ finishing f;
    const mx_cuda_draw *d = draw + blockIdx.x;
    if (d->wanted < 0 || is_greedy(*d)) return;
    const places p = places_of(scratch, vocab, blockIdx.x);
    const draw_info info = *p.info;
    if (info.kind == DONE) return;
    const float *row = row_of(logits, vocab, d);
    candidates c = candidates_of(adjusts(*d) ? p.x : row, vocab, p, info, unit, &f);
    rules r = {0, d->min_p};
    if (info.kind == CUT) {
        gather(&c, &f);
        uint64_t total;
        if (counts(*d, vocab)) {
            const selection s = select(c, false, (uint64_t)d->top_k, &f.h);
            r.last = s.last;
            total = s.mass;
        } else {
            amount own = {0, (int)threadIdx.x < chunks_of(vocab) ? p.chunk[threadIdx.x].mass : 0}, all;
            sum_before(own, &all, f.h.part);
            total = all.mass;
        }
        if (d->top_p < 1) { /* as in model/sampler.c: 0.3 of ten equal tokens is three, though 0.3f > 0.3 */
            const uint64_t need = (uint64_t)ceil((double)d->top_p * ((double)total * (1 - FLT_EPSILON)));
            r.last = select(c, true, need > 1 ? need : 1, &f.h).last;
        }
    }
    const int id = c.held >= 0 ? draw_among(c, r, 0, 0, d->uniform, &f) : draw_in_chunks(c, r, d->uniform, &f);
    if (id < 0) return;
    drawn[blockIdx.x] = {id, logprob_of(info, row[id]), MX_CUDA_DRAWN};
    if (token) token[blockIdx.x] = id;
}

/* One block: the k likeliest, best first. */
__global__ void __launch_bounds__(DEEP, 1)
    finish_top(const float *logits, int vocab, int k, float *scratch, mx_cuda_token_value *out) {
    mx_begin();
    __shared__ finishing f;
    __shared__ uint64_t order[MX_CUDA_MOST_TOP];
    const places p = places_of(scratch, vocab, 0);
    const draw_info info = *p.info;
    if (info.kind == DONE) return;
    candidates c = candidates_of(logits, vocab, p, info, 0, &f);
    gather(&c, &f);
    const uint64_t last = select(c, false, (uint64_t)k, &f.h).last;
    if (threadIdx.x == 0) f.found = 0;
    mx_sync();
    c.each([&](float x, int id, uint64_t) {
        if (order_of(x, id) >= last) order[mx_atomic_add(&f.found, 1)] = order_of(x, id);
    });
    mx_sync();
    if ((int)threadIdx.x >= k) return;
    int rank = 0;
    for (int i = 0; i < k; i++) rank += order[i] > order[threadIdx.x];
    const int id = MX_CUDA_MOST_VOCAB - 1 - (int)(order[threadIdx.x] & (MX_CUDA_MOST_VOCAB - 1));
    out[rank] = {id, logprob_of(info, logits[id])};
}

} // namespace

/* ---- queueing ---- */
int64_t mx_cuda_sample_scratch(int vocab) {
    return scratch_floats(vocab);
}

void mx_cuda_sample(const float *logits, int vocab, const mx_cuda_draw *draw, int count, float *scratch,
                    mx_cuda_drawn *drawn, int32_t *token, mx_gpu_stream *s) {
    const dim3 chunks(chunks_of(vocab), count);
    const float unit = unit_for(vocab);
    if (count <= 0) return;
    mx_launch(s, chunks, WIDE, 0, survey, logits, vocab, draw, scratch, unit);
    mx_launch(s, dim3(count), DEEP, 0, merge, logits, vocab, draw, 0, -1, scratch, unit, drawn, token);
    mx_launch(s, chunks, WIDE, 0, weigh, logits, vocab, draw, scratch, unit);
    mx_launch(s, dim3(count), DEEP, 0, finish, logits, vocab, draw, scratch, unit, drawn, token);
}

void mx_cuda_top(const float *logits, int vocab, int k, mx_cuda_token_value *out, int32_t token, mx_cuda_drawn *drawn,
                 float *scratch, mx_gpu_stream *s) {
    const dim3 chunks(chunks_of(vocab));
    const float unit = unit_for(vocab);
    const mx_cuda_draw *none = nullptr;
    mx_launch(s, chunks, WIDE, 0, survey, logits, vocab, none, scratch, unit);
    mx_launch(s, dim3(1), DEEP, 0, merge, logits, vocab, none, k, token, scratch, unit, drawn, (int32_t *)nullptr);
    if (k == 0) return;
    mx_launch(s, chunks, WIDE, 0, weigh, logits, vocab, none, scratch, unit);
    mx_launch(s, dim3(1), DEEP, 0, finish_top, logits, vocab, k, scratch, out);
}
