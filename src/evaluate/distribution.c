#include "evaluate/distribution.h"

#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>

enum { BLOCK = 512, LANES = 8 };

/* ---- the largest --------------------------------------------------------------------------------------------------
 */
/* Is `a` to go before `b` when one has to? Never true of two where one is NaN. */
static bool goes_first(const mx_kept_logit *a, const mx_kept_logit *b) {
    return a->logit < b->logit || (a->logit == b->logit && a->token > b->token);
}

/* Restores the heap, whose root goes first, below `i`. */
static void sift_down(mx_kept_logit *heap, int count, int i) {
    const mx_kept_logit moved = heap[i];
    for (int child; (child = 2 * i + 1) < count; i = child) {
        if (child + 1 < count && goes_first(&heap[child + 1], &heap[child])) child++;
        if (!goes_first(&heap[child], &moved)) break;
        heap[i] = heap[child];
    }
    heap[i] = moved;
}

static int by_token(const void *a, const void *b) {
    const int32_t x = ((const mx_kept_logit *)a)->token, y = ((const mx_kept_logit *)b)->token;
    return (x > y) - (x < y);
}

void mx_distribution_select(const float *logits, int32_t vocab, mx_kept_logit *kept, int count) {
    for (int i = 0; i < count; i++) kept[i] = (mx_kept_logit){i, logits[i]};
    if (count == vocab) return;
    for (int i = count / 2; i-- > 0;) sift_down(kept, count, i);
    for (int32_t i = count; i < vocab; i++) {
        if (!(logits[i] > kept[0].logit)) continue; /* an equal one has a lower token */
        kept[0] = (mx_kept_logit){i, logits[i]};
        sift_down(kept, count, 0);
    }
    qsort(kept, (size_t)count, sizeof *kept, by_token);
}

/* ---- sums ---------------------------------------------------------------------------------------------------------
 */
/* exp(x) for x <= 0, to 1 ulp or so: 2^n * p(r), x = n log 2 + r, |r| <= log(2) / 2, p being Taylor's of degree 13,
 * whose rest is below 2^-57. Without a call, so that compilers compute several at once. Below -708,
 * where numbers get subnormal, exp(-708); NaN stays NaN. */
static inline double exp_of(double x) {
    static const double LOG2E = 0x1.71547652b82fep0, LN2_HIGH = 0x1.62e42fefa0000p-1, LN2_LOW = 0x1.cf79abc9e3b3ap-40,
                        SHIFT = 0x1.8p52;
    const double inside = x < -708.0 ? -708.0 : x;
    const double shifted = inside * LOG2E + SHIFT, n = shifted - SHIFT;
    const double r = (inside - n * LN2_HIGH) - n * LN2_LOW;
    double p = 1.0 / 6227020800;
    p = p * r + 1.0 / 479001600;
    p = p * r + 1.0 / 39916800;
    p = p * r + 1.0 / 3628800;
    p = p * r + 1.0 / 362880;
    p = p * r + 1.0 / 40320;
    p = p * r + 1.0 / 5040;
    p = p * r + 1.0 / 720;
    p = p * r + 1.0 / 120;
    p = p * r + 1.0 / 24;
    p = p * r + 1.0 / 6;
    p = p * r + 0.5;
    p = p * r + 1;
    p = p * r + 1;
    union {
        double value;
        uint64_t bits;
    } power = {.value = shifted}; /* n in its lowest bits */
    power.bits = (power.bits + 1023) << 52;
    return p * power.value;
}

/* Its index, the lowest of several. */
static int32_t largest(const float *logits, int32_t vocab) {
    enum { WIDE = 16 };
    float lane[WIDE];
    int32_t i = 0;
    for (int l = 0; l < WIDE; l++) lane[l] = -INFINITY;
    for (; i + WIDE <= vocab; i += WIDE)
        for (int l = 0; l < WIDE; l++) lane[l] = logits[i + l] > lane[l] ? logits[i + l] : lane[l];
    for (; i < vocab; i++) lane[0] = logits[i] > lane[0] ? logits[i] : lane[0];
    for (int l = 1; l < WIDE; l++) lane[0] = lane[l] > lane[0] ? lane[l] : lane[0];
    for (i = 0; i < vocab && logits[i] != lane[0]; i++) {
    }
    return i < vocab ? i : 0; /* there is none where all are NaN */
}

static double add_lanes(const double lane[LANES]) {
    double sum = 0;
    for (int i = 0; i < LANES; i++) sum += lane[i];
    return sum;
}

static void add_block(double lane[LANES], const double e[BLOCK]) {
    for (int i = 0; i < BLOCK; i += LANES)
        for (int l = 0; l < LANES; l++) lane[l] += e[i + l];
}

void mx_distribution_sum(const float *logits, int32_t vocab, const mx_kept_logit *kept, int count,
                         mx_distribution *out) {
    const int32_t best = largest(logits, vocab);
    const double most = logits[best];
    double all[LANES] = {0}, rest[LANES] = {0}, e[BLOCK];
    for (int32_t first = 0, next = 0; first < vocab; first += BLOCK) {
        const int32_t some = vocab - first < BLOCK ? vocab - first : BLOCK;
        for (int32_t i = 0; i < some; i++) e[i] = exp_of((double)logits[first + i] - most);
        for (int32_t i = some; i < BLOCK; i++) e[i] = 0;
        add_block(all, e); /* the rest is a sum of its own, so that it is exactly 0 where all are kept */
        for (; next < count && kept[next].token < first + BLOCK; next++) e[kept[next].token - first] = 0;
        if (count) add_block(rest, e);
    }
    const double sum = add_lanes(all);
    *out = (mx_distribution){.log_sum = most + log(sum), .rest = count ? add_lanes(rest) / sum : 1, .best = best};
}

double mx_distribution_kl(const mx_distribution *p, const mx_kept_logit *kept, int count, const mx_distribution *q,
                          const float *logits) {
    double kl = 0;
    for (int i = 0; i < count; i++) {
        const double log_p = (double)kept[i].logit - p->log_sum, log_q = (double)logits[kept[i].token] - q->log_sum;
        const double probability = exp(log_p);
        if (probability > 0) kl += probability * (log_p - log_q);
    }
    if (p->rest > 0) kl += p->rest * log(p->rest / (q->rest > DBL_MIN ? q->rest : DBL_MIN));
    return kl > 0 || isnan(kl) ? kl : 0; /* it is never negative: less is rounding */
}
