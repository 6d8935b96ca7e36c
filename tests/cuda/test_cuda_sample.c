/* Sampling on the device against model/sampler.c with scalar kernels: the same tokens, but where the random number or a
 * sum for top-p lies so close to a bound that the last bits of a sum of doubles decide (on a real GPU, those of expf).
 */
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/cuda/cuda_kernels.h"
#include "model/sampler.h"
#include "tests/cuda/target.h"

enum { REAL = 201088, ROWS = 6, LISTED = 4096 };

static bool longer;
static const mx_kernels *scalar;
static mx_gpu_stream *stream;
static mx_error error;

static uint64_t random_state = 1;
static double uniform(void) {
    return mx_sample_uniform(78, (int64_t)random_state++);
}
static int below(int n) {
    return (int)(uniform() * n);
}
static double normal(void) {
    return sqrt(-2 * log(1 - uniform())) * cos(6.283185307179586 * uniform());
}

static const mx_sample_spec PLAIN = {.temperature = 1, .top_p = 1, .repetition_penalty = 1};

/* ---- on the device ------------------------------------------------------------------------------------------------
 */
static void must(mx_status status) {
    if (status) fail_msg("%s", error.text);
}

/* Device memory for one call. */
static struct {
    void *p[8 * ROWS + 16];
    int count;
} lent;

static void *device(const void *from, size_t bytes) {
    void *p;
    must(mx_gpu_alloc(&p, bytes ? bytes : 1, "test", &error));
    if (from && bytes) must(mx_gpu_copy(p, from, bytes, stream, &error));
    return lent.p[lent.count++] = p;
}

static void end_of_call(void) {
    must(mx_gpu_check("sampling", &error));
    must(mx_gpu_stream_wait(stream, &error));
    while (lent.count > 0) mx_gpu_free(lent.p[--lent.count]);
}

_Static_assert(sizeof(mx_cuda_token_value) == sizeof(mx_logit_bias), "copied as they are");
_Static_assert(sizeof(mx_cuda_token_count) == sizeof(mx_token_count), "copied as they are");

static mx_cuda_draw to_device(const mx_sample_spec *s, int wanted, int vocab) {
    return (mx_cuda_draw){
        .wanted = wanted,
        .top_k = s->top_k,
        .temperature = s->temperature,
        .top_p = s->top_p,
        .min_p = s->min_p,
        .repetition_penalty = s->repetition_penalty,
        .presence_penalty = s->presence_penalty,
        .frequency_penalty = s->frequency_penalty,
        .uniform = mx_sample_uniform(s->seed, s->position),
        .bias = device(s->bias, sizeof *s->bias * (size_t)s->bias_count),
        .bias_count = s->bias_count,
        .seen = device(s->seen, sizeof *s->seen * (size_t)s->seen_count),
        .seen_count = s->seen_count,
        .generated = device(s->generated, sizeof *s->generated * (size_t)s->generated_count),
        .generated_count = s->generated_count,
        .mask = s->mask ? device(s->mask, ((size_t)vocab + 31) / 32 * 4) : NULL,
    };
}

/* wanted[i] of -1: a hole. */
static void sample(const float *logits, int rows, int vocab, const mx_sample_spec *spec, const int *wanted, int count,
                   mx_cuda_drawn *out) {
    mx_cuda_draw draw[ROWS];
    int32_t token[ROWS];
    const size_t row_bytes = sizeof(float) * (size_t)vocab;
    for (int i = 0; i < count; i++) draw[i] = to_device(&spec[i], wanted[i], vocab);
    float *on_device = device(logits, row_bytes * (size_t)rows);
    mx_cuda_drawn *drawn = device(out, sizeof *out * (size_t)count);
    int32_t *tokens = device(NULL, sizeof *tokens * (size_t)count);
    mx_cuda_sample(on_device, vocab, device(draw, sizeof *draw * (size_t)count), count,
                   device(NULL, sizeof(float) * (size_t)(mx_cuda_sample_scratch(vocab) * count)), drawn, tokens,
                   stream);
    must(mx_gpu_copy(out, drawn, sizeof *out * (size_t)count, stream, &error));
    must(mx_gpu_copy(token, tokens, sizeof *tokens * (size_t)count, stream, &error));
    end_of_call();
    for (int i = 0; i < count; i++) {
        if (wanted[i] >= 0) assert_int_equal(token[i], out[i].token);
    }
}

static mx_cuda_drawn sample_one(const float *logits, int vocab, const mx_sample_spec *spec) {
    mx_cuda_drawn out = {-1, 0, -1};
    const int wanted = 0;
    sample(logits, 1, vocab, spec, &wanted, 1, &out);
    return out;
}

static mx_cuda_drawn top(const float *logits, int vocab, int k, int32_t token, mx_alternative *out) {
    mx_cuda_drawn drawn;
    mx_cuda_token_value got[MX_CUDA_MOST_TOP];
    mx_cuda_token_value *values = device(NULL, sizeof got);
    mx_cuda_drawn *on_device = device(NULL, sizeof drawn);
    mx_cuda_top(device(logits, sizeof(float) * (size_t)vocab), vocab, k, values, token, on_device,
                device(NULL, sizeof(float) * (size_t)mx_cuda_sample_scratch(vocab)), stream);
    must(mx_gpu_copy(got, values, sizeof *got * (size_t)k, stream, &error));
    must(mx_gpu_copy(&drawn, on_device, sizeof drawn, stream, &error));
    end_of_call();
    for (int i = 0; i < k; i++) out[i] = (mx_alternative){got[i].token, got[i].value};
    return drawn;
}

/* ---- the CPU's ----------------------------------------------------------------------------------------------------
 */
static mx_sampled sample_cpu(const float *logits, int vocab, const mx_sample_spec *spec) {
    static _Alignas(64) float scratch[REAL];
    mx_sampled out;
    must(mx_sample_logits(scalar, scratch, logits, vocab, spec, &out, &error));
    return out;
}

typedef struct entry {
    float x;
    int id;
    double weight;
    bool out;
} entry;

static int better(const void *a, const void *b) {
    const entry *l = a, *r = b;
    if (l->x != r->x) return l->x > r->x ? -1 : 1;
    return l->id - r->id;
}
static int lower_id(const void *a, const void *b) {
    return ((const entry *)a)->id - ((const entry *)b)->id;
}

/* Of the sum of all; weights are expf's. */
static const double CLOSE = EMULATED ? 1e-9 : 1e-6;

/* Does a bound of top-p, or of the draw, lie as close as that to a sum? Only without bias, penalties and mask is x
 * known here without doing all again: `x` are adjusted logits. */
static bool close_call(const float *x, int vocab, const mx_sample_spec *s) {
    static entry e[REAL];
    const float scale = fminf(1 / s->temperature, FLT_MAX);
    int n = 0;
    for (int i = 0; i < vocab; i++) {
        if (x[i] > -INFINITY) e[n++] = (entry){x[i], i, 0, false};
    }
    qsort(e, (size_t)n, sizeof *e, better);
    if (s->top_k > 0 && s->top_k < n) n = s->top_k;
    double total = 0, sum = 0;
    for (int i = 0; i < n; i++) total += e[i].weight = expf((e[i].x - e[0].x) * scale);
    if (s->top_p < 1) {
        const double most = (double)s->top_p * (total * (1 - FLT_EPSILON));
        int kept = 0;
        while (kept < n && (kept == 0 || sum < most)) {
            sum += e[kept++].weight;
            if (fabs(sum - most) < CLOSE * total) return true;
        }
        n = kept;
    }
    total = sum = 0;
    for (int i = 0; i < n; i++) total += e[i].weight = (float)e[i].weight < s->min_p ? 0 : e[i].weight;
    qsort(e, (size_t)n, sizeof *e, lower_id);
    const double u = mx_sample_uniform(s->seed, s->position);
    for (int i = 0; i < n; i++) {
        sum += e[i].weight;
        if (fabs(sum - u * total) < CLOSE * total) return true;
    }
    return false;
}

/* Logits that the sampler, told nothing but temperature and cuts, treats as these with all of `s`. */
static void adjusted(float *x, const float *logits, int vocab, const mx_sample_spec *s) {
    memcpy(x, logits, sizeof *x * (size_t)vocab);
    for (int i = 0; i < s->bias_count; i++) {
        float *v = &x[s->bias[i].token];
        *v = fminf(fmaxf(*v + s->bias[i].value, -FLT_MAX), FLT_MAX);
    }
    for (int64_t i = 0; i < s->seen_count; i++) {
        float *v = &x[s->seen[i].token];
        *v = *v > 0 ? *v / s->repetition_penalty : *v * s->repetition_penalty;
        *v = fminf(fmaxf(*v, -FLT_MAX), FLT_MAX);
    }
    for (int64_t i = 0; i < s->generated_count; i++) {
        float *v = &x[s->generated[i].token];
        *v = *v - s->presence_penalty - s->frequency_penalty * (float)s->generated[i].count;
        *v = fminf(fmaxf(*v, -FLT_MAX), FLT_MAX);
    }
    for (int i = 0; s->mask && i < vocab; i++) {
        if (!(s->mask[i / 32] >> i % 32 & 1)) x[i] = -INFINITY;
    }
}

static int compared, differed;

/* A token of the CPU's and of the device's for the same thing. */
static void compare(const float *logits, int vocab, const mx_sample_spec *s, mx_cuda_drawn got) {
    static float x[REAL];
    const mx_sampled want = sample_cpu(logits, vocab, s);
    assert_int_equal(got.state, MX_CUDA_DRAWN);
    assert_in_range(got.token, 0, vocab - 1);
    compared++;
    if (got.token != want.token) {
        differed++;
        adjusted(x, logits, vocab, s);
        if (s->temperature <= 0 || s->top_k == 1 || !close_call(x, vocab, s))
            fail_msg("vocab %d, temperature %g, top_k %d, top_p %g, min_p %g, %d biases, %d seen, %s: token %d, the "
                     "CPU's is %d",
                     vocab, s->temperature, s->top_k, s->top_p, s->min_p, s->bias_count, (int)s->seen_count,
                     s->mask ? "mask" : "no mask", got.token, want.token);
    } else if (!(fabsf(got.logprob - want.logprob) <= 2e-6f * fmaxf(1, fabsf(want.logprob)))) {
        fail_msg("logprob %.9g, the CPU's is %.9g", got.logprob, want.logprob);
    }
}

/* ---- cases --------------------------------------------------------------------------------------------------------
 */
typedef struct lists {
    mx_logit_bias bias[40];
    mx_token_count seen[LISTED], generated[LISTED];
    uint32_t mask[REAL / 32 + 1];
} lists;

static void random_logits(float *logits, int vocab) {
    static const double spreads[] = {0.01, 1, 3, 10};
    const double spread = spreads[below(4)];
    const int tied = below(3);
    for (int i = 0; i < vocab; i++) {
        logits[i] = (float)(spread * normal() + 3);
        if (tied == 1) logits[i] = roundf(logits[i] * 2) / 2;
    }
}

static void random_lists(mx_sample_spec *s, lists *l, int vocab) {
    if (below(3) == 0) {
        s->repetition_penalty = 0.5f + (float)uniform() * 1.5f;
        s->presence_penalty = below(3) ? (float)normal() : 0;
        s->frequency_penalty = below(3) ? (float)normal() : 0;
        s->seen = l->seen, s->generated = l->generated;
        const int every = 1 + below(below(2) ? 3 : vocab); /* up to all tokens, from the last one down */
        for (int token = vocab - 1; token >= 0 && s->seen_count < LISTED; token -= every) {
            l->seen[s->seen_count++] = (mx_token_count){token, 1 + below(4)};
            if (below(2)) l->generated[s->generated_count++] = (mx_token_count){token, 1 + below(100)};
        }
    }
    if (below(3) == 0) {
        static const float ends[] = {FLT_MAX, -FLT_MAX, 100, -100};
        s->bias = l->bias;
        s->bias_count = 1 + below(40); /* some tokens twice, where there are few */
        for (int i = 0; i < s->bias_count; i++)
            l->bias[i] = (mx_logit_bias){below(vocab), below(20) ? (float)(10 * normal()) : ends[below(4)]};
    }
    if (below(3) == 0) {
        const bool few = below(2);
        for (int i = 0; i <= vocab / 32; i++) l->mask[i] = few ? 0 : (uint32_t)(uniform() * 4294967296.0);
        for (int i = 0; i < 3; i++) {
            const int token = below(vocab);
            l->mask[token / 32] |= 1u << token % 32;
        }
        s->mask = l->mask;
    }
}

static mx_sample_spec random_spec(lists *l, int vocab) {
    static const float temperatures[] = {0, 0.2f, 0.7f, 1, 1, 1.3f, 2, 20, 1e-42f};
    static const int top_ks[] = {1, 5, 40, 128, 129, 1000, 2000000000};
    static const float top_ps[] = {0, 0.05f, 0.3f, 0.5f, 0.9f, 0.95f, 0.99f};
    mx_sample_spec s = PLAIN;
    s.temperature = temperatures[below(9)];
    if (below(2)) s.top_k = top_ks[below(7)];
    if (below(2)) s.top_p = below(3) ? top_ps[below(7)] : (float)uniform();
    if (below(3) == 0) s.min_p = below(8) ? (float)(uniform() * uniform()) : 1;
    s.seed = (uint64_t)below(1 << 30);
    s.position = below(100000);
    random_lists(&s, l, vocab);
    return s;
}

static int random_vocab(void) {
    static const int sizes[] = {1, 31, 257, 300, 512, 2048, 2049, 4096};
    return sizes[below(8)];
}

/* ---- tests --------------------------------------------------------------------------------------------------------
 */
/* Rows of several requests in one call, each in the order of the emulation whose turn it is. */
static void as_the_cpu(void **state) {
    (void)state;
    static float logits[ROWS * 4096];
    static lists l[ROWS];
    const int rounds = longer ? 8000 : 250;
    compared = differed = 0;
    for (int round = 0; round < rounds; round++) {
        const int vocab = random_vocab(), count = 1 + below(ROWS);
        mx_sample_spec spec[ROWS];
        int wanted[ROWS];
        mx_cuda_drawn got[ROWS];
        for (int i = 0; i < ROWS; i++) random_logits(logits + i * vocab, vocab);
        for (int i = 0; i < count; i++) {
            spec[i] = random_spec(&l[i], vocab);
            wanted[i] = below(ROWS);
        }
        mx_emulation_set_order((mx_emulation_order)(round % MX_EMULATION_ORDERS));
        sample(logits, ROWS, vocab, spec, wanted, count, got);
        for (int i = 0; i < count; i++) compare(logits + wanted[i] * vocab, vocab, &spec[i], got[i]);
    }
    printf("%d draws, %d of them too close to call\n", compared, differed);
    assert_true(compared > 3 * rounds);
    assert_true(differed * 100 < compared);
}

/* gpt-oss' vocabulary: lists that fit into shared memory and such that do not, more groups than top-k, and fewer. */
static void large_vocabulary(void **state) {
    (void)state;
    static float logits[REAL];
    static lists l;
    static const struct {
        int top_k;
        float top_p, min_p, spread;
    } cases[] = {
        {0, 1, 0, 2.5f},     {50, 1, 0, 2.5f},    {0, 0.95f, 0, 2.5f}, {40, 0.9f, 0.05f, 4},
        {5000, 0.99f, 0, 1}, {0, 0.99f, 0, 0.1f}, {0, 1, 0.1f, 4},     {1000, 1, 0, 2.5f},
    };
    compared = differed = 0;
    for (int i = 0; i < 10; i++) {
        const int c = i < 8 ? i : below(8);
        for (int j = 0; j < REAL; j++) logits[j] = (float)(normal() * (double)cases[c].spread);
        mx_sample_spec s = PLAIN;
        s.top_k = cases[c].top_k, s.top_p = cases[c].top_p, s.min_p = cases[c].min_p;
        s.seed = (uint64_t)i;
        if (i >= 8) random_lists(&s, &l, REAL);
        mx_emulation_set_order((mx_emulation_order)(i % MX_EMULATION_ORDERS));
        compare(logits, REAL, &s, sample_one(logits, REAL, &s));
    }
    printf("%d draws, %d of them too close to call\n", compared, differed);
}

/* Draws of one call have the bits of each alone, in every order; holes are left as they were. */
static void one_by_one(void **state) {
    (void)state;
    static float logits[ROWS * 4096];
    static lists l[ROWS];
    for (int round = 0; round < 12; round++) {
        const int vocab = random_vocab();
        mx_sample_spec spec[ROWS];
        int wanted[ROWS];
        mx_cuda_drawn got[MX_EMULATION_ORDERS][ROWS];
        memset(got, 7, sizeof got);
        for (int i = 0; i < ROWS; i++) {
            random_logits(logits + i * vocab, vocab);
            spec[i] = random_spec(&l[i], vocab);
            wanted[i] = i == round % ROWS ? -1 : i;
        }
        for (int order = 0; order < MX_EMULATION_ORDERS; order++) {
            mx_emulation_set_order((mx_emulation_order)order);
            sample(logits, ROWS, vocab, spec, wanted, ROWS, got[order]);
            assert_memory_equal(got[order], got[0], sizeof got[0]);
        }
        for (int i = 0; i < ROWS; i++) {
            if (wanted[i] < 0) {
                assert_int_equal(got[0][i].token, 0x07070707);
                continue;
            }
            const mx_cuda_drawn alone = sample_one(logits + i * vocab, vocab, &spec[i]);
            assert_memory_equal(&alone, &got[0][i], sizeof alone);
        }
    }
    mx_emulation_set_order(MX_EMULATION_UP);
}

static void ties(void **state) {
    (void)state;
    float logits[1000];
    const float zeros[4] = {-0.0f, 0.0f, 0.0f, -1};
    /* ten tokens of 9 at 3, 103 ... and ten of 5; the lowest ids of the tied stay */
    for (int i = 0; i < 1000; i++) logits[i] = i % 100 == 7 ? 5 : i % 100 == 3 ? 9 : -30;
    for (int i = 0; i < 10; i++) {
        mx_sample_spec s = PLAIN;
        s.seed = (uint64_t)i;
        s.top_k = 3;
        int token = sample_one(logits, 1000, &s).token;
        assert_true(token == 3 || token == 103 || token == 203);
        s.top_k = 10, s.top_p = 0.3f; /* three of ten equal ones, though 0.3f > 0.3 */
        token = sample_one(logits, 1000, &s).token;
        assert_true(token == 3 || token == 103 || token == 203);
        s.top_k = 12, s.top_p = 1, s.temperature = 1000;
        token = sample_one(logits, 1000, &s).token;
        assert_true(token % 100 == 3 || token == 7 || token == 107);
        s.top_k = 1;
        assert_int_equal(sample_one(zeros, 4, &s).token, 0);
        s.top_k = 2;
        assert_true(sample_one(zeros, 4, &s).token < 2);
        s.top_k = 0, s.top_p = 0;
        assert_int_equal(sample_one(zeros, 4, &s).token, 0);
    }
}

static void extremes(void **state) {
    (void)state;
    static float logits[5000];
    uint32_t mask[5000 / 32 + 1] = {0};
    for (int i = 0; i < 5000; i++) logits[i] = (float)normal();
    logits[1234] = 20;
    mask[4321 / 32] = 1u << 4321 % 32;
    for (int i = 0; i < 6; i++) {
        mx_sample_spec s = PLAIN;
        s.seed = (uint64_t)i, s.mask = mask;
        s.temperature = i % 2 ? 1 : 0;
        if (i % 3 == 0) s.top_k = 5;
        if (i % 3 == 1) s.top_p = 0.5f;
        assert_int_equal(sample_one(logits, 5000, &s).token, 4321);
        s.mask = NULL, s.temperature = (float[]){1e-6f, 1e-30f, 1e-42f}[i % 3]; /* 1 / 1e-42 is infinite */
        assert_int_equal(sample_one(logits, 5000, &s).token, 1234);
    }
    /* half of many equal ones, all of which top-p's bound must leave in */
    for (int i = 0; i < 5000; i++) logits[i] = i == 1234 ? 20 : 18;
    mx_sample_spec half = PLAIN;
    half.temperature = 0.2f, half.top_p = 0.907f;
    for (half.seed = 0; half.seed < 8; half.seed++) compare(logits, 5000, &half, sample_one(logits, 5000, &half));
    /* values at the end of what fp32 holds: nothing overflows into NaN */
    const float huge[4] = {3e38f, -3e38f, 3e38f, 0};
    const mx_logit_bias more[2] = {{0, FLT_MAX}, {1, -FLT_MAX}};
    const mx_token_count seen[2] = {{0, 1}, {1, 1}};
    mx_sample_spec s = PLAIN;
    for (int i = 0; i < 4; i++) {
        s.bias = more, s.bias_count = 2, s.repetition_penalty = 0.01f, s.seen = seen, s.seen_count = 2;
        s.top_k = i & 1 ? 2 : 0, s.top_p = i & 2 ? 0.5f : 1;
        assert_int_equal(sample_one(huge, 4, &s).token, 0);
    }
}

static void bad_input(void **state) {
    (void)state;
    static float logits[5000];
    static const float bad[] = {NAN, -NAN, INFINITY, -INFINITY};
    uint32_t none[5000 / 32 + 1] = {0};
    none[5000 / 32] = ~0u << 5000 % 32; /* only beyond the vocabulary */
    mx_alternative likely[5];
    for (int i = 0; i < 7; i++) {
        mx_sample_spec s = PLAIN;
        s.temperature = (float)(i % 2);
        if (i % 3 == 1) s.top_k = 40;
        if (i % 3 == 2) s.top_p = 0.9f;
        s.mask = i < 4 ? none : NULL; /* which comes second */
        logits[4990] = bad[i % 4];
        logits[7 + 700 * i] = logits[7 + 700 * i + 256] = bad[(i + 1) % 4];
        mx_cuda_drawn got = sample_one(logits, 5000, &s);
        assert_int_equal(got.state, MX_CUDA_NOT_FINITE);
        assert_int_equal(got.token, 7 + 700 * i);
        assert_memory_equal(&got.logprob, &bad[(i + 1) % 4], 4);
        got = top(logits, 5000, 5, 3, likely);
        assert_int_equal(got.state, MX_CUDA_NOT_FINITE);
        assert_int_equal(got.token, 7 + 700 * i);
        logits[4990] = logits[7 + 700 * i] = logits[7 + 700 * i + 256] = 0;
        s.mask = none;
        got = sample_one(logits, 5000, &s);
        assert_int_equal(got.state, MX_CUDA_NONE_LEFT);
        assert_int_equal(got.token, 0);
    }
}

static void likeliest(void **state) {
    (void)state;
    static float logits[REAL];
    static _Alignas(64) float scratch[REAL];
    static const int ks[] = {0, 1, 20, 128};
    mx_alternative got[MX_CUDA_MOST_TOP], want[MX_CUDA_MOST_TOP];
    for (int round = 0; round < 80; round++) {
        const int vocab = round < 77 ? random_vocab() : REAL;
        const int k = ks[below(4)] < vocab ? ks[round % 4] < vocab ? ks[round % 4] : vocab : vocab < 128 ? vocab : 128;
        const int token = below(4) ? below(vocab) : -1;
        random_logits(logits, vocab);
        mx_emulation_set_order((mx_emulation_order)(round % MX_EMULATION_ORDERS));
        const mx_cuda_drawn drawn = top(logits, vocab, k, token, got);
        float logprob = 0;
        must(mx_top_logits(scalar, scratch, logits, vocab, k, want, token, &logprob, &error));
        assert_int_equal(drawn.state, MX_CUDA_DRAWN);
        assert_int_equal(drawn.token, token);
        assert_true(fabsf(drawn.logprob - logprob) <= 2e-6f * fmaxf(1, fabsf(logprob)));
        for (int i = 0; i < k; i++) {
            assert_int_equal(got[i].token, want[i].token);
            assert_true(fabsf(got[i].logprob - want[i].logprob) <= 2e-6f * fmaxf(1, fabsf(want[i].logprob)));
            if (got[i].token == token) assert_memory_equal(&got[i].logprob, &drawn.logprob, 4);
        }
        mx_sample_spec s = PLAIN; /* the same bits as a draw's */
        s.temperature = 0;
        const mx_cuda_drawn greedy = sample_one(logits, vocab, &s);
        if (k > 0) assert_memory_equal(&greedy.logprob, &got[0].logprob, 4);
    }
}

/* Chi-square over a thousand draws: 19 degrees of freedom, 0.1 % of all right samplers exceed 43.8. */
static void distribution(void **state) {
    (void)state;
    enum { VOCAB = 20, AT_ONCE = 500 };
    const int draws = longer ? 20000 : 1000;
    float logits[VOCAB];
    double p[VOCAB], total = 0, chi = 0;
    int counts[VOCAB] = {0};
    for (int i = 0; i < VOCAB; i++) {
        logits[i] = (float)normal();
        total += p[i] = exp((double)logits[i] / 0.8);
    }
    mx_cuda_draw *draw = calloc(AT_ONCE, sizeof *draw);
    mx_cuda_drawn *drawn = calloc(AT_ONCE, sizeof *drawn);
    mx_emulation_set_order(MX_EMULATION_UP);
    for (int at = 0; at < draws; at += AT_ONCE) {
        for (int i = 0; i < AT_ONCE; i++) {
            draw[i] = (mx_cuda_draw){.temperature = 0.8f, .top_p = 1, .repetition_penalty = 1};
            draw[i].uniform = mx_sample_uniform(5, at + i);
        }
        mx_cuda_drawn *on_device = device(NULL, sizeof *drawn * AT_ONCE);
        mx_cuda_sample(device(logits, sizeof logits), VOCAB, device(draw, sizeof *draw * AT_ONCE), AT_ONCE,
                       device(NULL, sizeof(float) * (size_t)mx_cuda_sample_scratch(VOCAB) * AT_ONCE), on_device,
                       device(NULL, sizeof(int32_t) * AT_ONCE), stream);
        must(mx_gpu_copy(drawn, on_device, sizeof *drawn * AT_ONCE, stream, &error));
        end_of_call();
        for (int i = 0; i < AT_ONCE; i++) counts[drawn[i].token]++;
    }
    free(draw);
    free(drawn);
    for (int i = 0; i < VOCAB; i++) {
        const double expected = draws * p[i] / total;
        chi += (counts[i] - expected) * (counts[i] - expected) / expected;
    }
    printf("chi-square %.1f with %d degrees of freedom\n", chi, VOCAB - 1);
    assert_true(chi < 43.8);
}

/* What a graph does again, it does with the draws that are in memory then. */
static void recorded(void **state) {
    (void)state;
    enum { VOCAB = 4096 };
    static float logits[VOCAB];
    mx_gpu_graph *graph;
    mx_cuda_drawn got;
    random_logits(logits, VOCAB);
    float *row = (float *)device(NULL, 2 * sizeof logits) + VOCAB; /* a row before it, for who would read row -1 */
    must(mx_gpu_copy(row, logits, sizeof logits, stream, &error));
    mx_cuda_draw *draw = device(NULL, sizeof *draw);
    float *scratch = device(NULL, sizeof(float) * (size_t)mx_cuda_sample_scratch(VOCAB));
    mx_cuda_drawn *drawn = device(NULL, sizeof *drawn);
    int32_t *token = device(NULL, sizeof *token);
    must(mx_gpu_capture_begin(stream, &error));
    mx_cuda_sample(row, VOCAB, draw, 1, scratch, drawn, token, stream);
    must(mx_gpu_capture_end(stream, &graph, &error));
    for (int i = 0; i < 6; i++) {
        mx_sample_spec s = PLAIN;
        s.seed = (uint64_t)i;
        s.temperature = (float)(i % 3);
        s.top_k = i % 2 ? 10 : 0;
        s.top_p = i > 3 ? 0.7f : 1;
        const mx_cuda_draw now = to_device(&s, 0, VOCAB);
        must(mx_gpu_copy(draw, &now, sizeof now, stream, &error));
        must(mx_gpu_graph_launch(graph, stream, &error));
        must(mx_gpu_copy(&got, drawn, sizeof got, stream, &error));
        must(mx_gpu_stream_wait(stream, &error));
        compare(logits, VOCAB, &s, got);
    }
    const mx_cuda_draw hole = {.wanted = -1, .temperature = 1, .top_p = 0.5f, .repetition_penalty = 1};
    const mx_cuda_drawn untouched = {7, 7, 7};
    must(mx_gpu_copy(draw, &hole, sizeof hole, stream, &error));
    must(mx_gpu_copy(drawn, &untouched, sizeof untouched, stream, &error));
    must(mx_gpu_graph_launch(graph, stream, &error));
    must(mx_gpu_copy(&got, drawn, sizeof got, stream, &error));
    must(mx_gpu_stream_wait(stream, &error));
    assert_memory_equal(&got, &untouched, sizeof got);
    mx_gpu_graph_destroy(graph);
    end_of_call();
}

static int set_up(void **state) {
    (void)state;
    must(mx_kernels_get("scalar", &scalar, &error));
    must(mx_gpu_use(0, &error));
    must(mx_gpu_stream_create(&stream, &error));
    return 0;
}
static int tear_down(void **state) {
    (void)state;
    mx_gpu_stream_destroy(stream);
    return 0;
}

/* longer: more of the same. A test's name: that one alone. */
int main(int argc, char **argv) {
    if (no_device()) return SKIPPED;
    longer = argc > 1 && strcmp(argv[1], "longer") == 0;
    if (argc > 1 && !longer) cmocka_set_test_filter(argv[1]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(as_the_cpu), cmocka_unit_test(large_vocabulary), cmocka_unit_test(one_by_one),
        cmocka_unit_test(ties),       cmocka_unit_test(extremes),         cmocka_unit_test(bad_input),
        cmocka_unit_test(likeliest),  cmocka_unit_test(distribution),     cmocka_unit_test(recorded),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
