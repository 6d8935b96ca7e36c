#include "model/sampler.h"

#include <float.h>
#include <math.h>
#include <string.h>

/* Excluded tokens carry -infinity. Exponentials are taken CHUNK at a time, so that the logits themselves stay in
 * scratch: their bits, not rounded probabilities, decide every order. */
enum { CHUNK = 1024, BUCKETS = 2048, BLOCK = 64, LISTED = 128 };

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

mx_status mx_sample_not_finite(int32_t token, float logit, mx_error *error) {
    return mx_fail(error, MX_INVALID_STATE,
                   "the model's logit of token %d is %g: expected a finite number; the weights may be damaged", token,
                   logit);
}

mx_status mx_sample_none_left(int32_t vocab, mx_error *error) {
    return mx_fail(error, MX_INVALID_STATE, "the mask of the constraint leaves none of %d tokens to choose", vocab);
}

static mx_status check_logits(const float *x, int32_t n, mx_error *error) {
    uint32_t bad = 0;
    for (int32_t i = 0; i < n; i++) bad |= (bits_of(x[i]) & 0x7f800000u) == 0x7f800000u;
    for (int32_t i = 0; bad && i < n; i++) {
        if (!isfinite(x[i])) return mx_sample_not_finite(i, x[i], error);
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

/* ---- the largest ----------------------------------------------------------------------------------------- */
/* Is any of x[at .. end) larger? Most of a large vocabulary is passed over by this. */
static bool any_above(const float *x, int64_t at, int64_t end, float limit) {
    int any = 0;
    for (int64_t i = at; i < end; i++) any |= x[i] > limit;
    return any;
}

/* The `count` largest of [n] into out, largest first; ties to the lowest id. `logprob` holds the logits for now. */
static void find_largest(const float *x, int32_t n, mx_alternative *out, int count) {
    int held = 0;
    for (int32_t at = 0; at < n; at += BLOCK) {
        const int32_t end = n - at < BLOCK ? n : at + BLOCK;
        if (held == count && !any_above(x, at, end, out[held - 1].logprob)) continue;
        for (int32_t i = at; i < end; i++) {
            if (held == count && !(x[i] > out[held - 1].logprob)) continue;
            int to = held < count ? held++ : held - 1;
            for (; to > 0 && x[i] > out[to - 1].logprob; to--) out[to] = out[to - 1];
            out[to] = (mx_alternative){i, x[i]};
        }
    }
}

/* ---- top-k and top-p ------------------------------------------------------------------------------------- */
/* A number that sorts like the float; both zeros are one. */
static uint32_t sort_key(float v) {
    uint32_t bits = bits_of(v + 0.0f);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

static float value_of(uint32_t key) {
    const uint32_t bits = key & 0x80000000u ? key & 0x7fffffffu : ~key;
    float v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

typedef struct histogram {
    double weight[BUCKETS];
    int32_t count[BUCKETS];
} histogram;

/* Weights (1, or the probability) of the candidates from `least` on whose key begins with `prefix`, by the next `bits`
 * bits of it. */
static void fill_histogram(const candidates *c, bool by_mass, float least, int low, int bits, uint32_t prefix,
                           histogram *h) {
    const float below = nextafterf(least, -INFINITY);
    float found[BLOCK], mass[BLOCK];
    *h = (histogram){0};
    for (int64_t at = 0; at < c->n; at += BLOCK) {
        const int64_t end = c->n - at < BLOCK ? c->n : at + BLOCK;
        int64_t m = 0;
        if (!any_above(c->x, at, end, below)) continue;
        for (int64_t i = at; i < end; i++) {
            found[m] = c->x[i];
            m += (c->x[i] >= least) & ((uint64_t)sort_key(c->x[i]) >> (low + bits) == prefix);
        }
        if (by_mass && m > 0) c->k->exp_sum(mass, found, m, c->shift, c->scale);
        for (int64_t i = 0; i < m; i++) {
            const uint32_t bucket = sort_key(found[i]) >> low & ((1u << bits) - 1);
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

static double total_mass(const candidates *c) {
    float mass[CHUNK];
    double total = 0;
    for (int64_t at = 0; at < c->n; at += CHUNK)
        total += c->k->exp_sum(mass, c->x + at, c->n - at < CHUNK ? c->n - at : CHUNK, c->shift, c->scale);
    return total;
}

/* All candidates below this logit together, be they as many as they may, have less than `spare` of the mass: what adds
 * up to all the rest needs none of them. In a large vocabulary that leaves few to sort. */
static float least_needed(const candidates *c, double spare) {
    const double least = c->shift + log(spare / 2 / (double)c->n) / c->scale;
    return (float)fmax(least - fabs(least) * 2 * FLT_EPSILON, -FLT_MAX);
}

/* Excludes what is below `last`, and of the candidates that equal it all but the first `ties`. */
static void keep_from(candidates *c, float last, int64_t ties) {
    int64_t equal = 0;
    for (int64_t i = 0; i < c->n; i++) {
        equal += c->x[i] == last;
        c->x[i] = c->x[i] < last ? -INFINITY : c->x[i];
    }
    for (int64_t i = 0; i < c->n && ties < equal; i++) {
        if (c->x[i] == last && ties-- <= 0) c->x[i] = -INFINITY;
    }
}

/* Excludes all but the fewest best candidates whose weights add up to `amount`: tokens for top-k, a part of the
 * probability of all candidates for top-p. A radix selection: three passes, 11, 11 and 10 bits of the key. */
static void keep_best(candidates *c, bool by_mass, double amount) {
    static const struct { int low, bits; } level[] = {{21, 11}, {10, 11}, {0, 10}};
    histogram h;
    uint32_t prefix = 0;
    double above = 0;
    float least = -FLT_MAX;
    int bucket = 0;
    if (by_mass) {
        const double total = total_mass(c);
        amount *= total * (1 - FLT_EPSILON); /* 0.3 of ten equal tokens is three, though 0.3f > 0.3 */
        least = least_needed(c, total - amount);
    }
    for (int l = 0; l < 3; l++) {
        fill_histogram(c, by_mass, least, level[l].low, level[l].bits, prefix, &h);
        bucket = reach(&h, 1 << level[l].bits, amount, &above);
        prefix = prefix << level[l].bits | (uint32_t)bucket;
        least = fmaxf(least, value_of(prefix << level[l].low)); /* the lowest key of the bucket */
    }
    /* Of the candidates that equal the last one, only as many as are needed. */
    const double ties = ceil((amount - above) * h.count[bucket] / h.weight[bucket]);
    keep_from(c, value_of(prefix), ties > 1 ? (int64_t)fmin(ties, h.count[bucket]) : 1);
}

/* The same for few tokens: they are listed. */
static void keep_largest(candidates *c, int count) {
    mx_alternative top[LISTED];
    int ties = 1;
    find_largest(c->x, (int32_t)c->n, top, count);
    const float last = top[count - 1].logprob;
    while (ties < count && top[count - 1 - ties].logprob == last) ties++;
    keep_from(c, last, ties);
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
    if (scratch[token] == -INFINITY) return mx_sample_none_left(vocab, error);

    if (s->temperature > 0 && s->top_k != 1) {
        candidates c = {k, scratch, vocab, scratch[token], fminf(1 / s->temperature, FLT_MAX)};
        if (s->top_k > 0 && s->top_k <= LISTED && s->top_k < vocab)
            keep_largest(&c, s->top_k);
        else if (s->top_k > 0 && s->top_k < vocab)
            keep_best(&c, false, s->top_k);
        if (s->top_p < 1) keep_best(&c, true, s->top_p);
        weigh(&c, s->min_p, token);
        token = draw(scratch, vocab, mx_sample_uniform(s->seed, s->position));
    }
    *out = (mx_sampled){(int32_t)token, logprob_of(&n, logits[token])};
    return MX_OK;
}

/* ---- the likeliest --------------------------------------------------------------------------------------- */
mx_status mx_top_check(int32_t vocab, int count, int32_t token, mx_error *error) {
    if (count < 0 || count > vocab)
        return mx_fail(error, MX_INVALID_ARGUMENT, "the %d likeliest tokens asked for: 0 to %d possible", count, vocab);
    if (token < -1 || token >= vocab)
        return mx_fail(error, MX_INVALID_ARGUMENT, "logprob of token %d: the vocabulary ends at %d", token, vocab - 1);
    return MX_OK;
}

mx_status mx_top_logits(const mx_kernels *k, float *scratch, const float *logits, int32_t vocab, int count,
                        mx_alternative *out, int32_t token, float *logprob, mx_error *error) {
    mx_status status = mx_top_check(vocab, count, token, error);
    if (!status) status = check_logits(logits, vocab, error);
    if (status) return status;

    const normaliser n = normalise(k, scratch, logits, vocab);
    if (count > 0) find_largest(logits, vocab, out, count);
    for (int i = 0; i < count; i++) out[i].logprob = logprob_of(&n, logits[out[i].token]);
    if (token >= 0) *logprob = logprob_of(&n, logits[token]);
    return MX_OK;
}
