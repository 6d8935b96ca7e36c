#include "model/sampler.h"

#include <float.h>
#include <math.h>
#include <string.h>

/* Excluded tokens carry -infinity. Exponentials are taken CHUNK at a time, so that the logits themselves stay in
 * scratch: their bits, not rounded probabilities, decide every order. */
enum { CHUNK = 1024, BUCKETS = 2048 };

typedef struct candidates {
    const mx_kernels *k;
    float *x; /* [n] adjusted logits, -infinity: excluded */
    int64_t n;
    float shift, scale; /* probability ~ exp((x - shift) * scale) */
} candidates;

/* ---- random numbers -------------------------------------------------------------------------------------- */
static uint64_t mix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

double mx_sample_uniform(uint64_t seed, int64_t position) {
    const uint64_t golden = 0x9e3779b97f4a7c15u;
    uint64_t bits = mix(mix(seed + golden) + ((uint64_t)position + 1) * golden);
    return (double)(bits >> 11) * 0x1p-53;
}

/* ---- checks ---------------------------------------------------------------------------------------------- */
mx_status mx_sample_spec_check(const mx_sample_spec *s, int32_t vocab, mx_error *error) {
    if (!(s->temperature >= 0) || isinf(s->temperature))
        return mx_fail(error, MX_INVALID_ARGUMENT, "temperature %g: expected 0 (greedy) or more", s->temperature);
    if (s->top_k < 0) return mx_fail(error, MX_INVALID_ARGUMENT, "top_k %d: expected 0 (off) or more", s->top_k);
    if (!(s->top_p >= 0 && s->top_p <= 1))
        return mx_fail(error, MX_INVALID_ARGUMENT, "top_p %g: expected 0 to 1 (1 is off)", s->top_p);
    if (!(s->min_p >= 0 && s->min_p <= 1))
        return mx_fail(error, MX_INVALID_ARGUMENT, "min_p %g: expected 0 (off) to 1", s->min_p);
    if (!(s->repetition_penalty > 0) || isinf(s->repetition_penalty))
        return mx_fail(error, MX_INVALID_ARGUMENT, "repetition_penalty %g: expected more than 0 (1 is off)",
                       s->repetition_penalty);
    if (!isfinite(s->presence_penalty) || !isfinite(s->frequency_penalty))
        return mx_fail(error, MX_INVALID_ARGUMENT,
                       "presence_penalty %g, frequency_penalty %g: expected finite numbers (0 is off)",
                       s->presence_penalty, s->frequency_penalty);
    for (int i = 0; i < s->bias_count; i++) {
        if (s->bias[i].token < 0 || s->bias[i].token >= vocab)
            return mx_fail(error, MX_INVALID_ARGUMENT, "logit bias for token %d: the vocabulary ends at %d",
                           s->bias[i].token, vocab - 1);
        if (!isfinite(s->bias[i].value))
            return mx_fail(error, MX_INVALID_ARGUMENT, "logit bias for token %d is %g: expected a finite number",
                           s->bias[i].token, s->bias[i].value);
    }
    return MX_OK;
}

static uint32_t bits_of(float v) {
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    return bits;
}

static mx_status check_logits(const float *x, int32_t n, mx_error *error) {
    uint32_t bad = 0;
    for (int32_t i = 0; i < n; i++) bad |= (bits_of(x[i]) & 0x7f800000u) == 0x7f800000u;
    for (int32_t i = 0; bad && i < n; i++) {
        if (!isfinite(x[i]))
            return mx_fail(error, MX_INVALID_STATE,
                           "the model's logit of token %d is %g: expected a finite number; the weights may be damaged",
                           i, x[i]);
    }
    return MX_OK;
}

/* ---- bias, penalties, mask ------------------------------------------------------------------------------- */
static float saturate(float v) {
    return fminf(fmaxf(v, -FLT_MAX), FLT_MAX);
}

static void adjust(float *x, int32_t vocab, const mx_sample_spec *s) {
    for (int i = 0; i < s->bias_count; i++) x[s->bias[i].token] = saturate(x[s->bias[i].token] + s->bias[i].value);
    if (s->repetition_penalty != 1) {
        for (int64_t i = 0; i < s->seen_count; i++) {
            float *v = &x[s->seen[i].token];
            *v = saturate(*v > 0 ? *v / s->repetition_penalty : *v * s->repetition_penalty);
        }
    }
    if (s->presence_penalty != 0 || s->frequency_penalty != 0) {
        for (int64_t i = 0; i < s->generated_count; i++) {
            float *v = &x[s->generated[i].token];
            *v = saturate(*v - s->presence_penalty - s->frequency_penalty * (float)s->generated[i].count);
        }
    }
    for (int32_t i = 0; s->mask && i < vocab; i++) {
        if (!(s->mask[i >> 5] >> (i & 31) & 1)) x[i] = -INFINITY;
    }
}

/* ---- top-k and top-p ------------------------------------------------------------------------------------- */
/* A number that sorts like the float; both zeros are one. */
static uint32_t sort_key(float v) {
    uint32_t bits = bits_of(v + 0.0f);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

typedef struct histogram {
    double weight[BUCKETS];
    int32_t count[BUCKETS];
} histogram;

/* Weights (1, or the probability) of the candidates whose key begins with `prefix`, by the next `bits` bits of it. */
static void fill_histogram(const candidates *c, bool by_mass, int low, int bits, uint32_t prefix, histogram *h) {
    float mass[CHUNK];
    *h = (histogram){0};
    for (int64_t at = 0; at < c->n; at += CHUNK) {
        int64_t m = c->n - at < CHUNK ? c->n - at : CHUNK;
        if (by_mass) c->k->exp_sum(mass, c->x + at, m, c->shift, c->scale);
        for (int64_t i = 0; i < m; i++) {
            uint32_t key = sort_key(c->x[at + i]);
            if (c->x[at + i] == -INFINITY || (uint64_t)key >> (low + bits) != prefix) continue;
            uint32_t bucket = key >> low & ((1u << bits) - 1);
            h->weight[bucket] += by_mass ? mass[i] : 1;
            h->count[bucket]++;
        }
    }
}

/* The bucket in which the weights, summed from the top, reach `amount`; *above gets the sum before it. Where rounding
 * keeps them from it, the lowest bucket that has anything. */
static int reach(const histogram *h, int buckets, double amount, double *above) {
    int found = 0;
    double sum = *above;
    for (int b = buckets - 1; b >= 0; b--) {
        if (h->weight[b] <= 0) continue;
        found = b;
        *above = sum;
        sum += h->weight[b];
        if (sum >= amount) break;
    }
    return found;
}

/* Excludes all but the fewest best candidates whose weights add up to `amount`: tokens for top-k, a part of the
 * probability of all candidates for top-p. A radix selection: three passes, 11, 11 and 10 bits of the key. */
static void keep_best(candidates *c, bool by_mass, double amount) {
    static const struct { int low, bits; } level[] = {{21, 11}, {10, 11}, {0, 10}};
    histogram h;
    uint32_t prefix = 0;
    double above = 0;
    int bucket = 0;
    for (int l = 0; l < 3; l++) {
        fill_histogram(c, by_mass, level[l].low, level[l].bits, prefix, &h);
        if (l == 0 && by_mass) {
            double total = 0;
            for (int b = BUCKETS - 1; b >= 0; b--) total += h.weight[b];
            amount *= total * (1 - FLT_EPSILON); /* 0.3 of ten equal tokens is three, though 0.3f > 0.3 */
        }
        bucket = reach(&h, 1 << level[l].bits, amount, &above);
        prefix = prefix << level[l].bits | (uint32_t)bucket;
    }
    /* Of the candidates that equal the last one, only as many as are needed. */
    double ties = ceil((amount - above) * h.count[bucket] / h.weight[bucket]);
    int64_t left = ties > 1 ? (ties < h.count[bucket] ? (int64_t)ties : h.count[bucket]) : 1;
    for (int64_t i = 0; i < c->n; i++) {
        uint32_t key = sort_key(c->x[i]);
        if (key < prefix || (key == prefix && left-- <= 0)) c->x[i] = -INFINITY;
    }
}

/* ---- the draw -------------------------------------------------------------------------------------------- */
/* Logits to weights in place: 0 for what is excluded or has less than min_p of the best one's probability. */
static void weigh(candidates *c, float min_p, int64_t best) {
    float weight[CHUNK];
    for (int64_t at = 0; at < c->n; at += CHUNK) {
        int64_t m = c->n - at < CHUNK ? c->n - at : CHUNK;
        c->k->exp_sum(weight, c->x + at, m, c->shift, c->scale);
        for (int64_t i = 0; i < m; i++) c->x[at + i] = c->x[at + i] == -INFINITY || weight[i] < min_p ? 0 : weight[i];
    }
    if (c->x[best] <= 0) c->x[best] = 1;
}

static double sum_of(const float *p, int64_t n) {
    double lane[8] = {0};
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        for (int j = 0; j < 8; j++) lane[j] += p[i + j];
    }
    for (; i < n; i++) lane[0] += p[i];
    return ((lane[0] + lane[1]) + (lane[2] + lane[3])) + ((lane[4] + lane[5]) + (lane[6] + lane[7]));
}

/* The token at which the running sum of the weights passes u of their total. Never one of weight 0, and some one must
 * have weight. Rounding may end the sum just below the target: then the last that has weight. */
static int32_t draw(const float *p, int64_t n, double u) {
    double total = 0, before = 0, sum = 0;
    int64_t start = 0;
    for (int64_t at = 0; at < n; at += CHUNK) total += sum_of(p + at, n - at < CHUNK ? n - at : CHUNK);
    for (int64_t at = 0; at < n && sum <= u * total; at += CHUNK) {
        double block = sum_of(p + at, n - at < CHUNK ? n - at : CHUNK);
        if (block <= 0) continue;
        start = at;
        before = sum;
        sum += block;
    }
    int64_t last = start;
    for (int64_t i = start; i < n && i < start + CHUNK; i++) {
        if (p[i] <= 0) continue;
        last = i;
        before += p[i];
        if (before > u * total) break;
    }
    return (int32_t)last;
}

/* What all log softmaxes of a row subtract; the same bits whoever asks. */
typedef struct normaliser {
    float largest;
    double log_sum;
} normaliser;

/* `scratch` [vocab] is overwritten. */
static normaliser normalise(const mx_kernels *k, float *scratch, const float *logits, int32_t vocab) {
    const float largest = logits[k->argmax(logits, vocab)];
    return (normaliser){largest, log(k->exp_sum(scratch, logits, vocab, largest, 1))};
}

static float logprob_of(const normaliser *n, float logit) {
    return (float)((double)logit - n->largest - n->log_sum);
}

mx_status mx_sample_logits(const mx_kernels *k, float *scratch, const float *logits, int32_t vocab,
                           const mx_sample_spec *s, mx_sampled *out, mx_error *error) {
    mx_status status = mx_sample_spec_check(s, vocab, error);
    if (!status) status = check_logits(logits, vocab, error);
    if (status) return status;

    const normaliser n = normalise(k, scratch, logits, vocab);
    memcpy(scratch, logits, sizeof *logits * (size_t)vocab);
    adjust(scratch, vocab, s);
    int64_t token = k->argmax(scratch, vocab);
    if (scratch[token] == -INFINITY)
        return mx_fail(error, MX_INVALID_STATE, "the mask of the constraint leaves none of %d tokens to choose", vocab);

    if (s->temperature > 0 && s->top_k != 1) {
        candidates c = {k, scratch, vocab, scratch[token], fminf(1 / s->temperature, FLT_MAX)};
        if (s->top_k > 0 && s->top_k < vocab) keep_best(&c, false, s->top_k);
        if (s->top_p < 1) keep_best(&c, true, s->top_p);
        weigh(&c, s->min_p, token);
        token = draw(scratch, vocab, mx_sample_uniform(s->seed, s->position));
    }
    *out = (mx_sampled){(int32_t)token, logprob_of(&n, logits[token])};
    return MX_OK;
}

/* ---- the likeliest --------------------------------------------------------------------------------------- */
/* The `count` largest of [n] into out, largest first; ties to the lowest id. `logprob` holds the logits for now. */
static void find_largest(const float *x, int32_t n, mx_alternative *out, int count) {
    enum { BLOCK = 64 };
    int held = 0;
    for (int32_t at = 0; at < n; at += BLOCK) {
        const int32_t end = n - at < BLOCK ? n : at + BLOCK;
        if (held == count) {
            int any = 0;
            for (int32_t i = at; i < end; i++) any |= x[i] > out[held - 1].logprob;
            if (!any) continue;
        }
        for (int32_t i = at; i < end; i++) {
            if (held == count && !(x[i] > out[held - 1].logprob)) continue;
            int to = held < count ? held++ : held - 1;
            for (; to > 0 && x[i] > out[to - 1].logprob; to--) out[to] = out[to - 1];
            out[to] = (mx_alternative){i, x[i]};
        }
    }
}

mx_status mx_top_logits(const mx_kernels *k, float *scratch, const float *logits, int32_t vocab, int count,
                        mx_alternative *out, int32_t token, float *logprob, mx_error *error) {
    if (count < 0 || count > vocab)
        return mx_fail(error, MX_INVALID_ARGUMENT, "the %d likeliest tokens asked for: 0 to %d possible", count, vocab);
    if (token < -1 || token >= vocab)
        return mx_fail(error, MX_INVALID_ARGUMENT, "logprob of token %d: the vocabulary ends at %d", token, vocab - 1);
    mx_status status = check_logits(logits, vocab, error);
    if (status) return status;

    const normaliser n = normalise(k, scratch, logits, vocab);
    if (count > 0) find_largest(logits, vocab, out, count);
    for (int i = 0; i < count; i++) out[i].logprob = logprob_of(&n, logits[out[i].token]);
    if (token >= 0) *logprob = logprob_of(&n, logits[token]);
    return MX_OK;
}
