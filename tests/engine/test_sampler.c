/* The sampler against the rules spelled out in double precision with a full sort. */
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/kernels.h"
#include "model/sampler.h"

enum { MOST = 9001 };

static const mx_kernels *tier;
static _Alignas(64) float scratch[MOST];

static uint64_t random_state = 1;
static double uniform(void) {
    return mx_sample_uniform(77, (int64_t)random_state++);
}
static int below(int n) {
    return (int)(uniform() * n);
}
static double normal(void) {
    return sqrt(-2 * log(1 - uniform())) * cos(6.283185307179586 * uniform());
}

static const mx_sample_spec PLAIN = {.temperature = 1, .top_p = 1, .repetition_penalty = 1};

/* ---- the specification --------------------------------------------------------------------------------------------
 */
typedef struct entry {
    float x;
    double p;
    int id;
} entry;

static int better(const void *a, const void *b) {
    const entry *l = a, *r = b;
    if (l->x != r->x) return l->x > r->x ? -1 : 1;
    return l->id - r->id;
}

static void renormalise(entry *e, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += e[i].p;
    for (int i = 0; i < n; i++) e[i].p /= sum;
}

/* Probabilities by id. *doubtful: a cut lies so close to a sum that rounding decides. */
static void specification(const float *logits, int vocab, const mx_sample_spec *s, double *p, bool *doubtful) {
    static entry e[MOST];
    int n = 0;
    *doubtful = false;
    for (int i = 0; i < vocab; i++) {
        float x = logits[i];
        for (int b = 0; b < s->bias_count; b++) x += s->bias[b].token == i ? s->bias[b].value : 0;
        for (int64_t t = 0; t < s->seen_count; t++) {
            if (s->seen[t].token == i) x = x > 0 ? x / s->repetition_penalty : x * s->repetition_penalty;
        }
        for (int64_t t = 0; t < s->generated_count; t++) {
            if (s->generated[t].token == i)
                x = x - s->presence_penalty - s->frequency_penalty * (float)s->generated[t].count;
        }
        if (!s->mask || s->mask[i / 32] >> i % 32 & 1) e[n++] = (entry){x, 0, i};
        p[i] = 0;
    }
    qsort(e, (size_t)n, sizeof *e, better);
    if (s->temperature == 0) {
        p[e[0].id] = 1;
        return;
    }
    for (int i = 0; i < n; i++) e[i].p = exp(((double)e[i].x - e[0].x) / s->temperature);
    if (s->top_k > 0 && s->top_k < n) n = s->top_k;
    renormalise(e, n);
    if (s->top_p < 1) {
        double sum = 0;
        int kept = 0;
        while (kept < n && sum < s->top_p) sum += e[kept++].p;
        if (fabs(sum - s->top_p) < 1e-5 || fabs(sum - e[kept ? kept - 1 : 0].p - s->top_p) < 1e-5) *doubtful = true;
        n = kept ? kept : 1;
        renormalise(e, n);
    }
    if (s->min_p > 0) {
        int kept = 0;
        while (kept < n && e[kept].p >= s->min_p * e[0].p) kept++;
        if (kept < n && fabs(e[kept].p / e[0].p - s->min_p) < 1e-5) *doubtful = true;
        if (kept > 0 && fabs(e[kept - 1].p / e[0].p - s->min_p) < 1e-5 && s->min_p < 1) *doubtful = true;
        n = kept ? kept : 1;
        renormalise(e, n);
    }
    for (int i = 0; i < n; i++) p[e[i].id] = e[i].p;
}

static mx_sampled sample(const float *logits, int vocab, const mx_sample_spec *s) {
    mx_sampled out = {-1, 0};
    mx_error error;
    if (mx_sample_logits(tier, scratch, logits, vocab, s, &out, &error)) fail_msg("%s", error.text);
    return out;
}

static mx_status refused(const float *logits, int vocab, const mx_sample_spec *s, const char *words) {
    mx_sampled out;
    mx_error error = {0};
    mx_status status = mx_sample_logits(tier, scratch, logits, vocab, s, &out, &error);
    assert_int_not_equal(status, MX_OK);
    if (!strstr(error.text, words)) fail_msg("'%s' does not say '%s'", error.text, words);
    return status;
}

/* Every draw must be the token that inverts the specification's distribution function at the same random number. */
static void check(const float *logits, int vocab, const mx_sample_spec *spec, int draws, int *checked) {
    static double p[MOST];
    bool doubtful;
    specification(logits, vocab, spec, p, &doubtful);
    if (doubtful) return;
    double largest = logits[0], sum = 0;
    for (int i = 1; i < vocab; i++) largest = logits[i] > largest ? logits[i] : largest;
    for (int i = 0; i < vocab; i++) sum += exp(logits[i] - largest);
    mx_sample_spec s = *spec;
    for (int d = 0; d < draws; d++) {
        s.seed = (uint64_t)below(1 << 30);
        s.position = below(100000);
        mx_sampled got = sample(logits, vocab, &s);
        assert_in_range(got.token, 0, vocab - 1);
        assert_true(p[got.token] > 0 || s.temperature == 0);
        double lower = 0, u = mx_sample_uniform(s.seed, s.position);
        for (int i = 0; i < got.token; i++) lower += p[i];
        if (u < lower - 1e-5 || u > lower + p[got.token] + 1e-5)
            fail_msg("token %d covers %g..%g, the random number is %g", got.token, lower, lower + p[got.token], u);
        assert_true(fabs(got.logprob - (logits[got.token] - largest - log(sum))) < 2e-5 * (1 + fabs(got.logprob)));
        ++*checked;
    }
}

/* ---- tests --------------------------------------------------------------------------------------------------------
 */
static void random_specs(void **state) {
    (void)state;
    static float logits[MOST];
    static mx_token_count seen[64], generated[64];
    static mx_logit_bias bias[8];
    static uint32_t mask[MOST / 32 + 1];
    static const int sizes[] = {1, 2, 31, 32, 33, 200, 512, 1023, 1024, 1025, 4096, 9001};
    static const float temperatures[] = {0, 0.2f, 0.7f, 1, 1, 1.5f, 20};
    int checked = 0;
    for (int round = 0; round < 1500; round++) {
        int vocab = sizes[below(12)];
        double spread = (double[]){0.1, 1, 3, 10}[below(4)];
        bool tied = below(2);
        for (int i = 0; i < vocab; i++) {
            logits[i] = (float)(spread * normal() + 3);
            if (tied) logits[i] = roundf(logits[i] * 2) / 2;
        }
        mx_sample_spec s = PLAIN;
        s.temperature = temperatures[below(7)];
        if (below(2)) s.top_k = 1 + below(below(2) ? 50 : 2 * vocab);
        if (below(2)) s.top_p = (float)uniform();
        if (below(3) == 0) s.min_p = (float)(uniform() * uniform());
        if (below(3) == 0) {
            s.repetition_penalty = 0.5f + (float)uniform() * 1.5f;
            s.presence_penalty = (float)normal();
            s.frequency_penalty = (float)normal();
            s.seen = seen;
            s.generated = generated;
            for (int i = 0; i < 64 && i < vocab; i++) { /* distinct tokens */
                int token = i * (vocab / 64 ? vocab / 64 : 1);
                seen[s.seen_count++] = (mx_token_count){token, 1 + below(4)};
                if (below(2)) generated[s.generated_count++] = (mx_token_count){token, 1 + below(4)};
            }
        }
        if (below(3) == 0) {
            s.bias = bias;
            s.bias_count = 1 + below(8);
            for (int i = 0; i < s.bias_count; i++) bias[i] = (mx_logit_bias){below(vocab), (float)(10 * normal())};
        }
        if (below(3) == 0) {
            for (int i = 0; i < vocab / 32 + 1; i++) mask[i] = (uint32_t)(uniform() * 4294967296.0);
            mask[0] |= 1;
            s.mask = mask;
        }
        check(logits, vocab, &s, 6, &checked);
    }
    printf("%s: %d draws checked\n", tier->name, checked);
    assert_true(checked > 7000);
}

static void greedy_ties_take_the_lowest(void **state) {
    (void)state;
    float logits[100] = {0};
    mx_sample_spec s = PLAIN;
    s.temperature = 0;
    assert_int_equal(sample(logits, 100, &s).token, 0);
    logits[40] = logits[41] = logits[99] = 2;
    assert_int_equal(sample(logits, 100, &s).token, 40);
    mx_logit_bias bias = {40, -1};
    s.bias = &bias, s.bias_count = 1;
    assert_int_equal(sample(logits, 100, &s).token, 41);
}

static void ties_at_the_cut(void **state) {
    (void)state;
    float logits[1000];
    for (int i = 0; i < 1000; i++) logits[i] = i % 100 == 7 ? 5 : i % 100 == 3 ? 9 : -30;
    /* ten tokens of 9 at 3, 103 ... and ten of 5; the lowest ids of the tied stay */
    for (int i = 0; i < 400; i++) {
        mx_sample_spec s = PLAIN;
        s.seed = (uint64_t)i;
        s.top_k = 3;
        int token = sample(logits, 1000, &s).token;
        assert_true(token == 3 || token == 103 || token == 203);
        s.top_k = 10;
        s.top_p = 0.3f;
        token = sample(logits, 1000, &s).token;
        assert_true(token == 3 || token == 103 || token == 203);
        s.top_p = 1;
        s.top_k = 12;
        s.temperature = 1000;
        token = sample(logits, 1000, &s).token;
        assert_true(token % 100 == 3 || token == 7 || token == 107);
    }
    float zeros[4] = {-0.0f, 0.0f, 0.0f, -1};
    for (int i = 0; i < 100; i++) {
        mx_sample_spec s = PLAIN;
        s.seed = (uint64_t)i;
        s.top_k = 1;
        assert_int_equal(sample(zeros, 4, &s).token, 0);
        s.top_k = 2;
        assert_true(sample(zeros, 4, &s).token < 2);
    }
}

static void extremes(void **state) {
    (void)state;
    static float logits[5000];
    for (int i = 0; i < 5000; i++) logits[i] = (float)normal();
    logits[1234] = 20;
    int at_high[3] = {0};
    for (int i = 0; i < 300; i++) {
        mx_sample_spec s = PLAIN;
        s.seed = (uint64_t)i;
        s.top_p = 0;
        s.temperature = 5;
        assert_int_equal(sample(logits, 5000, &s).token, 1234);
        s = PLAIN, s.seed = (uint64_t)i, s.min_p = 1, s.temperature = 5;
        assert_int_equal(sample(logits, 5000, &s).token, 1234);
        for (int t = 0; t < 3; t++) { /* 1e-42 has an infinite reciprocal */
            s = PLAIN, s.seed = (uint64_t)i, s.temperature = (float[]){1e-6f, 1e-30f, 1e-42f}[t];
            assert_int_equal(sample(logits, 5000, &s).token, 1234);
        }
        s = PLAIN, s.seed = (uint64_t)i, s.temperature = 1e6f;
        at_high[sample(logits, 5000, &s).token * 3 / 5000]++;
        mx_logit_bias bias[2] = {{17, 100}, {1234, -100}};
        s = PLAIN, s.seed = (uint64_t)i, s.bias = bias, s.bias_count = 2;
        mx_sampled got = sample(logits, 5000, &s);
        assert_int_equal(got.token, 17);
        assert_true(got.logprob < -10); /* of the unchanged logits */
        s.bias = bias + 1, s.bias_count = 1;
        assert_int_not_equal(sample(logits, 5000, &s).token, 1234);
        s = PLAIN, s.seed = (uint64_t)i, s.top_k = 2000000000;
        mx_sample_spec off = PLAIN;
        off.seed = (uint64_t)i;
        assert_int_equal(sample(logits, 5000, &s).token, sample(logits, 5000, &off).token);
    }
    for (int i = 0; i < 3; i++) assert_in_range(at_high[i], 60, 140);

    uint32_t mask[5000 / 32 + 1] = {0};
    mask[4321 / 32] = 1u << 4321 % 32;
    for (int i = 0; i < 100; i++) {
        mx_sample_spec s = PLAIN;
        s.seed = (uint64_t)i;
        s.mask = mask;
        s.temperature = i % 2 ? 1 : 0;
        if (i % 3 == 0) s.top_k = 5;
        if (i % 5 == 0) s.top_p = 0.5f;
        assert_int_equal(sample(logits, 5000, &s).token, 4321);
    }

    /* values at the end of what fp32 holds: nothing overflows into NaN */
    float huge[4] = {3e38f, -3e38f, 3e38f, 0};
    mx_logit_bias more[2] = {{0, 3e38f}, {1, -3e38f}};
    mx_sample_spec s = PLAIN;
    s.bias = more, s.bias_count = 2, s.repetition_penalty = 0.01f;
    mx_token_count seen[2] = {{0, 1}, {1, 1}};
    s.seen = seen, s.seen_count = 2;
    assert_int_equal(sample(huge, 4, &s).token, 0);
}

static void bad_input(void **state) {
    (void)state;
    static float logits[3000];
    mx_sample_spec s = PLAIN;
    logits[2999] = NAN;
    assert_int_equal(refused(logits, 3000, &s, "token 2999 is nan"), MX_INVALID_STATE);
    logits[2999] = -NAN;
    assert_int_equal(refused(logits, 3000, &s, "token 2999"), MX_INVALID_STATE);
    logits[2999] = 0;
    logits[5] = INFINITY;
    assert_int_equal(refused(logits, 3000, &s, "token 5 is inf"), MX_INVALID_STATE);
    logits[5] = -INFINITY;
    assert_int_equal(refused(logits, 3000, &s, "token 5 is -inf"), MX_INVALID_STATE);
    logits[5] = 0;
    uint32_t none[3000 / 32 + 1] = {0};
    s.mask = none;
    for (int i = 0; i < 2; i++) {
        s.temperature = (float)i;
        assert_int_equal(refused(logits, 3000, &s, "mask"), MX_INVALID_STATE);
    }
    none[3000 / 32] = ~0u << 3000 % 32; /* only beyond the vocabulary */
    refused(logits, 3000, &s, "mask");

#define WRONG(field, value)                                                                                            \
    do {                                                                                                               \
        mx_sample_spec w = PLAIN;                                                                                      \
        w.field = value;                                                                                               \
        assert_int_equal(refused(logits, 3000, &w, #field), MX_INVALID_ARGUMENT);                                      \
    } while (0)
    WRONG(temperature, -1);
    WRONG(temperature, NAN);
    WRONG(temperature, INFINITY);
    WRONG(top_k, -1);
    WRONG(top_p, -0.1f);
    WRONG(top_p, 1.1f);
    WRONG(top_p, NAN);
    WRONG(min_p, 2);
    WRONG(min_p, NAN);
    WRONG(repetition_penalty, 0);
    WRONG(repetition_penalty, NAN);
    WRONG(presence_penalty, INFINITY);
    WRONG(frequency_penalty, NAN);
    mx_logit_bias bias[1] = {{3000, 1}};
    s = PLAIN, s.bias = bias, s.bias_count = 1;
    refused(logits, 3000, &s, "token 3000");
    bias[0].token = -1;
    refused(logits, 3000, &s, "token -1");
    bias[0] = (mx_logit_bias){3, NAN};
    refused(logits, 3000, &s, "token 3 is nan");
}

/* ---- the likeliest ------------------------------------------------------------------------------------------------
 */
static uint32_t bits_of(float v) {
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    return bits;
}

/* Against a full sort; every logprob has the bits that the sampler reports for that token. */
static void likeliest(void **state) {
    (void)state;
    static float logits[MOST];
    static entry e[MOST];
    static mx_alternative top[MOST + 1];
    static const int sizes[] = {1, 2, 63, 64, 65, 128, 200, 1025, 9001};
    mx_error error;
    for (int round = 0; round < 200; round++) {
        const int vocab = sizes[below(9)], count = below(4) ? below(vocab < 20 ? vocab + 1 : 21) : below(vocab + 1);
        const int shape = below(4); /* free, tied, ascending, descending */
        for (int i = 0; i < vocab; i++) {
            logits[i] = (float)(5 * normal());
            if (shape == 1) logits[i] = roundf(logits[i] / 4) * 4; /* zeros of both signs, too */
            if (shape >= 2) logits[i] = (float)(shape == 2 ? i : -i) / 100;
            e[i] = (entry){logits[i], 0, i};
        }
        qsort(e, (size_t)vocab, sizeof *e, better);
        for (int i = 0; i <= count; i++) top[i] = (mx_alternative){-7, 7};
        const int32_t token = below(vocab);
        float logprob = 7;
        assert_int_equal(mx_top_logits(tier, scratch, logits, vocab, count, top, token, &logprob, &error), MX_OK);
        for (int i = 0; i < count; i++) assert_int_equal(top[i].token, e[i].id);
        assert_int_equal(top[count].token, -7); /* nothing behind them is touched */
        for (int i = 0; i <= (count < 30 ? count : 30); i++) {
            const int32_t forced = i < count ? top[i].token : token;
            mx_sample_spec s = PLAIN; /* bias and penalties do not count */
            s.bias = &(mx_logit_bias){forced, 3e38f}, s.bias_count = 1, s.repetition_penalty = 1.5f;
            mx_sampled sampled = sample(logits, vocab, &s);
            assert_int_equal(sampled.token, forced);
            assert_int_equal(bits_of(i < count ? top[i].logprob : logprob), bits_of(sampled.logprob));
        }
    }
    float logprob = 7;
    assert_int_equal(mx_top_logits(tier, scratch, logits, 5, 0, NULL, -1, &logprob, &error), MX_OK);
    assert_true(logprob == 7);
    assert_int_equal(mx_top_logits(tier, scratch, logits, 5, 6, top, -1, NULL, &error), MX_INVALID_ARGUMENT);
    assert_int_equal(mx_top_logits(tier, scratch, logits, 5, -1, top, -1, NULL, &error), MX_INVALID_ARGUMENT);
    assert_int_equal(mx_top_logits(tier, scratch, logits, 5, 1, top, 5, &logprob, &error), MX_INVALID_ARGUMENT);
    assert_non_null(strstr(error.text, "token 5"));
    logits[3] = NAN;
    assert_int_equal(mx_top_logits(tier, scratch, logits, 5, 1, top, 0, &logprob, &error), MX_INVALID_STATE);
    assert_non_null(strstr(error.text, "token 3 is nan"));
}

static double chi_square(const int *count, const double *p, int n, int draws) {
    double chi = 0;
    for (int i = 0; i < n; i++) {
        if (p[i] > 0)
            chi += (count[i] - draws * p[i]) * (count[i] - draws * p[i]) / (draws * p[i]);
        else
            assert_int_equal(count[i], 0);
    }
    return chi;
}

static void distributions(void **state) {
    (void)state;
    float logits[12];
    for (int i = 0; i < 12; i++) logits[i] = (float)normal();
    mx_sample_spec specs[5] = {PLAIN, PLAIN, PLAIN, PLAIN, PLAIN};
    specs[1].temperature = 2.5f;
    specs[2].top_k = 5;
    specs[3].top_p = 0.8f;
    specs[4].min_p = 0.3f;
    for (int along = 0; along < 2; along++) { /* many seeds at one position, one seed at many positions */
        for (int c = 0; c < 5; c++) {
            double p[12];
            int count[12] = {0};
            bool doubtful;
            specification(logits, 12, &specs[c], p, &doubtful);
            assert_false(doubtful);
            for (int i = 0; i < 40000; i++) {
                mx_sample_spec s = specs[c];
                *(along ? (uint64_t *)&s.position : &s.seed) = (uint64_t)i;
                count[sample(logits, 12, &s).token]++;
            }
            assert_true(chi_square(count, p, 12, 40000) < 50); /* 11 degrees: P < 1e-6 */
        }
    }
}

static void uniform_numbers(void **state) {
    (void)state;
    /* pairs (u at position, u at the next), (u of seed, u of the next seed): 64 cells, chi-square with 63 degrees */
    for (int which = 0; which < 2; which++) {
        int count[64] = {0};
        double p[64];
        for (int i = 0; i < 64; i++) p[i] = 1 / 64.0;
        for (int i = 0; i < 100000; i++) {
            double a = which ? mx_sample_uniform(5, i) : mx_sample_uniform((uint64_t)i, 9);
            double b = which ? mx_sample_uniform(5, i + 1) : mx_sample_uniform((uint64_t)i + 1, 9);
            assert_true(a >= 0 && a < 1);
            count[(int)(a * 8) * 8 + (int)(b * 8)]++;
        }
        assert_true(chi_square(count, p, 64, 100000) < 130);
    }
    assert_true(mx_sample_uniform(1, 2) == mx_sample_uniform(1, 2));
    assert_true(mx_sample_uniform(1, 2) != mx_sample_uniform(2, 1));
}

static int use_tier(void **state) {
    mx_error error;
    return mx_kernels_get(*state, &tier, &error) != MX_OK;
}

#define TIER(name)                                                                                                     \
    cmocka_unit_test_prestate_setup_teardown(random_specs, use_tier, NULL, name),                                      \
        cmocka_unit_test_prestate_setup_teardown(greedy_ties_take_the_lowest, use_tier, NULL, name),                   \
        cmocka_unit_test_prestate_setup_teardown(ties_at_the_cut, use_tier, NULL, name),                               \
        cmocka_unit_test_prestate_setup_teardown(extremes, use_tier, NULL, name),                                      \
        cmocka_unit_test_prestate_setup_teardown(likeliest, use_tier, NULL, name),                                     \
        cmocka_unit_test_prestate_setup_teardown(bad_input, use_tier, NULL, name),                                     \
        cmocka_unit_test_prestate_setup_teardown(distributions, use_tier, NULL, name)

int main(void) {
    const struct CMUnitTest always[] = {TIER("scalar"), cmocka_unit_test(uniform_numbers)};
    const struct CMUnitTest avx2[] = {TIER("avx2")};
    const struct CMUnitTest avx512[] = {TIER("avx512")};
    const mx_kernels *found;
    int failures = cmocka_run_group_tests_name("sampler", always, NULL, NULL);
    if (mx_kernels_get("avx2", &found, NULL))
        printf("skipped: no AVX2 tier here\n");
    else
        failures += cmocka_run_group_tests_name("sampler avx2", avx2, NULL, NULL);
    if (mx_kernels_get("avx512", &found, NULL))
        printf("skipped: no AVX-512 tier here\n");
    else
        failures += cmocka_run_group_tests_name("sampler avx512", avx512, NULL, NULL);
    return failures;
}
