/* Softmax, what is kept of it, and KL divergence, against long double and full sorts. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "evaluate/distribution.h"
#include "evaluate/statistics.h"

enum { MOST = 5000 };

static float logits[MOST], others[MOST];
static mx_kept_logit kept[MOST], expected[MOST];

static uint64_t state_of_random = 1;
static double uniform(void) {
    state_of_random = state_of_random * 6364136223846793005u + 1442695040888963407u;
    return (double)(state_of_random >> 11) * 0x1p-53;
}

static void fill(float *out, int n, double spread) {
    for (int i = 0; i < n; i++) out[i] = (float)(spread * (uniform() + uniform() + uniform() - 1.5));
}

static int likelier(const void *a, const void *b) {
    const mx_kept_logit *x = a, *y = b;
    if (x->logit != y->logit) return x->logit < y->logit ? 1 : -1;
    return x->token < y->token ? -1 : 1;
}

static int by_token(const void *a, const void *b) {
    const mx_kept_logit *x = a, *y = b;
    return x->token < y->token ? -1 : 1;
}

static void expect(int n, int k) {
    for (int i = 0; i < n; i++) expected[i] = (mx_kept_logit){i, logits[i]};
    qsort(expected, (size_t)n, sizeof *expected, likelier);
    qsort(expected, (size_t)k, sizeof *expected, by_token);
}

static void the_likeliest_are_selected(void **state) {
    (void)state;
    static const int sizes[] = {1, 2, 7, 64, 513, MOST};
    for (int s = 0; s < 6; s++) {
        for (int round = 0; round < 4; round++) {
            const int n = sizes[s];
            fill(logits, n, 8);
            for (int i = 0; i < n && round % 2; i++) logits[i] = roundf(logits[i]); /* many ties */
            for (int k = 1; k <= n; k += k < 5 ? 1 : n / 5 + 1) {
                mx_distribution_select(logits, n, kept, k);
                expect(n, k);
                for (int i = 0; i < k; i++) {
                    assert_int_equal(kept[i].token, expected[i].token);
                    assert_true(kept[i].logit == expected[i].logit);
                }
            }
        }
    }
}

static void sums(void **state) {
    (void)state;
    static const double spreads[] = {0, 1, 10, 100, 3000};
    static const int sizes[] = {1, 3, 511, 512, 513, MOST};
    for (int s = 0; s < 5; s++) {
        for (int z = 0; z < 6; z++) {
            const int n = sizes[z], k = n < 64 ? (n + 1) / 2 : 64;
            fill(logits, n, spreads[s]);
            mx_distribution_select(logits, n, kept, k);
            mx_distribution d, none, all;
            mx_distribution_sum(logits, n, kept, k, &d);
            mx_distribution_sum(logits, n, NULL, 0, &none);
            int best = 0;
            long double sum = 0, rest = 0;
            for (int i = 1; i < n; i++) best = logits[i] > logits[best] ? i : best;
            for (int i = 0, next = 0; i < n; i++) {
                const long double e = expl((long double)logits[i] - logits[best]);
                sum += e;
                if (next < k && kept[next].token == i)
                    next++;
                else
                    rest += e;
            }
            assert_int_equal(d.best, best);
            assert_true(fabsl(d.log_sum - (logits[best] + logl(sum))) < 1e-13L * (1 + fabsl((long double)d.log_sum)));
            assert_true(fabsl(d.rest - rest / sum) <= 1e-14L * rest / sum + 1e-300L);
            assert_true(d.log_sum == none.log_sum); /* whatever is kept */
            assert_true(fabs(none.rest - 1) < 1e-14);
            mx_distribution_select(logits, n, kept, n);
            mx_distribution_sum(logits, n, kept, n, &all);
            assert_true(all.rest == 0 && all.log_sum == d.log_sum);
        }
    }
}

static void what_is_no_number_is_seen(void **state) {
    (void)state;
    static const float bad[] = {NAN, INFINITY};
    for (int b = 0; b < 2; b++) {
        for (int at = 0; at < 700; at += 233) {
            fill(logits, 700, 5);
            logits[at] = bad[b];
            mx_distribution d;
            mx_distribution_sum(logits, 700, NULL, 0, &d);
            assert_false(isfinite(d.log_sum));
            mx_distribution_select(logits, 700, kept, 64);
            for (int i = 1; i < 64; i++) assert_true(kept[i].token > kept[i - 1].token);
        }
    }
    for (int i = 0; i < 700; i++) logits[i] = NAN;
    mx_distribution d;
    mx_distribution_sum(logits, 700, NULL, 0, &d);
    assert_false(isfinite(d.log_sum));
    assert_int_equal(d.best, 0);
}

static long double exact_kl(const float *p, const float *q, int n) {
    long double sum_p = 0, sum_q = 0, kl = 0;
    for (int i = 0; i < n; i++) sum_p += expl((long double)p[i]), sum_q += expl((long double)q[i]);
    for (int i = 0; i < n; i++) {
        const long double log_p = p[i] - logl(sum_p), log_q = q[i] - logl(sum_q);
        kl += expl(log_p) * (log_p - log_q);
    }
    return kl;
}

static double kl_of(const float *p, const float *q, int n, int k) {
    mx_distribution dp, dq;
    mx_distribution_select(p, n, kept, k);
    mx_distribution_sum(p, n, kept, k, &dp);
    mx_distribution_sum(q, n, kept, k, &dq);
    return mx_distribution_kl(&dp, kept, k, &dq, q);
}

static void divergence(void **state) {
    (void)state;
    for (int round = 0; round < 12; round++) {
        const int n = round % 2 ? 1000 : MOST;
        fill(logits, n, 6);
        for (int i = 0; i < n; i++) others[i] = logits[i] + (float)(pow(10, -round / 3) * (uniform() - 0.5));
        const long double exact = exact_kl(logits, others, n);
        double before = 0;
        assert_true(fabsl(kl_of(logits, others, n, n) - exact) < 1e-13L);
        for (int k = 1; k < n; k *= 3) { /* a lower bound, and the closer the more are kept */
            const double kl = kl_of(logits, others, n, k);
            assert_true(kl >= 0 && kl <= (double)exact + 1e-13);
            if (k > 64) assert_true(kl >= before - 1e-13);
            before = kl;
        }
        assert_true(kl_of(logits, logits, n, 64) == 0 && kl_of(logits, logits, n, n) == 0);
        for (int i = 0; i < n; i++) others[i] = logits[i] + 3; /* the same distribution */
        assert_true(kl_of(logits, others, n, 64) < 1e-6);
    }
}

/* The same of distributions over the k likeliest tokens and one for all others. */
static long double kl_of_parts(const float *p, const float *q, int n, int k) {
    long double sum_p = 0, sum_q = 0, kl = 0, rest_p = 1, rest_q = 1;
    for (int i = 0; i < n; i++) sum_p += expl((long double)p[i]), sum_q += expl((long double)q[i]);
    for (int i = 0; i < n; i++) expected[i] = (mx_kept_logit){i, p[i]};
    qsort(expected, (size_t)n, sizeof *expected, likelier);
    for (int i = 0; i < k; i++) {
        const int t = expected[i].token;
        const long double of_p = expl((long double)p[t]) / sum_p, of_q = expl((long double)q[t]) / sum_q;
        kl += of_p * logl(of_p / of_q);
        rest_p -= of_p, rest_q -= of_q;
    }
    return kl + rest_p * logl(rest_p / rest_q);
}

static void divergence_of_parts(void **state) {
    (void)state;
    for (int round = 0; round < 10; round++) {
        fill(logits, 1000, 8);
        fill(others, 1000, 8);
        for (int k = 1; k < 500; k *= 4) {
            const long double exact = kl_of_parts(logits, others, 1000, k);
            assert_true(exact > 0.001L && fabsl(kl_of(logits, others, 1000, k) - exact) < 1e-12L);
        }
    }
}

/* A reference that is sure of what this one holds impossible: much, but a number. */
static void far_apart(void **state) {
    (void)state;
    for (int i = 0; i < 100; i++) logits[i] = (float)i, others[i] = (float)(-20 * i);
    const double whole = kl_of(logits, others, 100, 100), part = kl_of(logits, others, 100, 4);
    assert_true(whole > 1000 && isfinite(whole));
    assert_true(part > 1000 && part <= whole);
}

static void statistics(void **state) {
    (void)state;
    enum { N = 101 };
    double nats[N], base[N], kl[N];
    unsigned char same[N];
    long double sum = 0, squares = 0, sum_base = 0, cross = 0;
    for (int i = 0; i < N; i++) {
        base[i] = 3 * uniform();
        nats[i] = base[i] + 0.2 * uniform();
        kl[i] = (double)((i * 37) % N);
        same[i] = i % 4 != 0;
        sum += nats[i], sum_base += base[i];
    }
    const mx_measured m = {.tokens = N, .nats = nats, .base_nats = base, .kl = kl, .same = same};
    mx_evaluation v = {.bytes = 400};
    const double ppl = (double)expl(sum / N), base_ppl = (double)expl(sum_base / N);
    for (int i = 0; i < N; i++) {
        squares += (nats[i] - sum / N) * (nats[i] - sum / N);
        const long double d = ppl * (nats[i] - sum / N) - base_ppl * (base[i] - sum_base / N);
        cross += d * d;
    }
    mx_measured_summarise(&m, &v);
    assert_true(fabs(v.perplexity - ppl) < 1e-12 * ppl);
    assert_true(fabs(v.standard_error - ppl * (double)sqrtl(squares / (N - 1) / N)) < 1e-12);
    assert_true(fabs(v.bits_per_byte - (double)sum / log(2) / 400) < 1e-12);
    assert_true(fabs(v.delta_perplexity - (ppl - base_ppl)) < 1e-12);
    assert_true(fabs(v.delta_stderr - (double)sqrtl(cross / (N - 1) / N)) < 1e-12);
    assert_true(v.delta_stderr < v.standard_error); /* paired */
    assert_true(v.has_base && fabs(v.kl_mean - 50) < 1e-12 && v.kl_median == 50 && v.kl_p99 == 99 && v.kl_max == 100);
    assert_true(v.top1 == 75.0 / N);
    const mx_measured one = {.tokens = 1, .nats = nats};
    mx_measured_summarise(&one, &v);
    assert_true(isnan(v.standard_error) && fabs(v.perplexity - exp(nats[0])) < 1e-12);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_likeliest_are_selected),
        cmocka_unit_test(sums),
        cmocka_unit_test(what_is_no_number_is_seen),
        cmocka_unit_test(divergence),
        cmocka_unit_test(divergence_of_parts),
        cmocka_unit_test(far_apart),
        cmocka_unit_test(statistics),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
