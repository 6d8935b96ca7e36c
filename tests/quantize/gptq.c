/* GPTQ: less loss under the Hessian than rounding, and step by step what its definition says. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/cpu.h"
#include "base/threads.h"
#include "quantize_maker.h"

/* Inputs that hang together, as activations do: columns are mixtures of a few. */
typedef struct inputs {
    float *hessian;
    double *square;
    mx_statistics statistics;
} inputs;

static inputs make_inputs(int64_t cols, int seen) {
    inputs in = {calloc((size_t)(cols * cols), sizeof(float)), calloc((size_t)cols, sizeof(double)), {0}};
    double *sum = calloc((size_t)(cols * cols), sizeof *sum);
    float *x = malloc(sizeof *x * (size_t)cols), *mix = malloc(sizeof *mix * (size_t)cols * 8);
    assert_true(in.hessian && in.square && sum && x && mix);
    for (int64_t i = 0; i < cols * 8; i++) mix[i] = maker_normal();
    for (int s = 0; s < seen; s++) {
        float cause[8];
        for (int j = 0; j < 8; j++) cause[j] = maker_normal();
        for (int64_t k = 0; k < cols; k++) {
            x[k] = 0.5f * maker_normal();
            for (int j = 0; j < 8; j++) x[k] += cause[j] * mix[k * 8 + j];
            if (k % 37 == 5) x[k] = 0; /* a column that is never used */
        }
        for (int64_t i = 0; i < cols; i++)
            for (int64_t j = 0; j < cols; j++) sum[i * cols + j] += (double)x[i] * (double)x[j] / seen;
    }
    for (int64_t i = 0; i < cols * cols; i++) in.hessian[i] = (float)sum[i];
    for (int64_t i = 0; i < cols; i++) in.square[i] = sum[i * cols + i];
    in.statistics = (mx_statistics){.cols = cols, .rows = seen, .square = in.square, .hessian = in.hessian};
    free(sum);
    free(x);
    free(mix);
    return in;
}

static void free_inputs(inputs *in) {
    free(in->hessian);
    free(in->square);
}

/* Sum over the rows of d H d'. */
static double loss(const maker *m, const inputs *in) {
    const int64_t n = m->job.cols;
    float *out = maker_widen(m);
    double sum = 0;
    for (int64_t r = 0; r < m->job.rows; r++)
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = 0; j < n; j++)
                sum += ((double)m->x[r * n + i] - (double)out[r * n + i]) * (double)in->hessian[i * n + j] *
                       ((double)m->x[r * n + j] - (double)out[r * n + j]);
    free(out);
    return sum;
}

static void less_is_lost_than_by_rounding(void **unused) {
    (void)unused;
    static const char *const forms[] = {"mxfp4", "mxfp4:64", "nvfp4", "amxfp4", "int4:32", "int4:64:asym", "int8:32"};
    inputs in = make_inputs(192, 400);
    for (size_t f = 0; f < sizeof forms / sizeof *forms; f++)
        for (int search = 0; search < 2; search++) {
            maker *m = maker_new(forms[f], search ? "search" : "ocp", 12, 192);
            maker_run(m, NULL);
            const double rounded = loss(m, &in);
            m->job.recipe.gptq = true;
            m->job.statistics = &in.statistics;
            maker_run(m, NULL);
            const double fed = loss(m, &in);
            if (fed > 0.6 * rounded) fail_msg("%s: %g of %g is left", forms[f], fed, rounded);
            float *out = maker_widen(m);
            double error = 0;
            for (int i = 0; i < 12 * 192; i++)
                error += ((double)m->x[i] - (double)out[i]) * ((double)m->x[i] - (double)out[i]);
            assert_true(fabs(error - m->report.error) < 1e-5 * error);
            assert_false(m->report.lossless);
            free(out);
            maker_free(m);
        }
    free_inputs(&in);
}

/* GPTQ as its paper has it: with H^-1 and its Cholesky factor U (H^-1 = U' U), all columns behind updated after each.
 * Scales are chosen when a block is reached. Everything in double. */
static void invert(double *a, double *out, int n) {
    for (int i = 0; i < n * n; i++) out[i] = i % (n + 1) == 0;
    for (int i = 0; i < n; i++) {
        const double p = a[i * n + i];
        for (int k = 0; k < n; k++) {
            a[i * n + k] /= p;
            out[i * n + k] /= p;
        }
        for (int r = 0; r < n; r++) {
            const double factor = a[r * n + i];
            for (int k = 0; k < n && r != i; k++) {
                a[r * n + k] -= factor * a[i * n + k];
                out[r * n + k] -= factor * out[i * n + k];
            }
        }
    }
}

static void it_is_the_paper_s(void **unused) {
    (void)unused;
    enum { N = 288, ROWS = 24 }; /* more than the 128 columns whose errors are handed on at once */
    inputs in = make_inputs(N, 300);
    maker *m = maker_new("mxfp4", "gptq", ROWS, N);
    m->job.statistics = &in.statistics;
    maker_run(m, NULL);
    static double h[N * N], inverse[N * N], u[N * N];
    double mean = 0;
    for (int i = 0; i < N; i++) mean += (double)in.hessian[i * N + i] / N;
    for (int i = 0; i < N * N; i++) h[i] = (double)in.hessian[i] + (i % (N + 1) == 0 ? 0.01 * mean : 0);
    invert(h, inverse, N);
    for (int i = 0; i < N; i++) /* lower Cholesky L of the inverse; U = L' */
        for (int j = 0; j <= i; j++) {
            double sum = inverse[i * N + j];
            for (int k = 0; k < j; k++) sum -= u[k * N + i] * u[k * N + j];
            u[j * N + i] = i == j ? sqrt(sum) : sum / u[j * N + j];
        }
    int different = 0;
    for (int r = 0; r < ROWS; r++) {
        double w[N];
        int e = 0;
        for (int i = 0; i < N; i++) w[i] = (double)m->x[r * N + i];
        for (int j = 0; j < N; j++) {
            if (j % 32 == 0) {
                double largest = 0;
                for (int k = j; k < j + 32; k++) largest = fmax(largest, fabs(w[k]));
                frexp(largest, &e);
                e -= 3;
                assert_int_equal(m->job.scales[r * (N / 32) + j / 32] - 127, e);
            }
            const unsigned code = mx_element_get(MX_E2M1, m->job.data, r * N + j);
            different += code != mx_element_code(MX_E2M1, (float)ldexp(w[j], -e));
            const double q = ldexp((double)mx_element_value(MX_E2M1, code), e), error = (w[j] - q) / u[j * N + j];
            for (int k = j + 1; k < N; k++) w[k] -= error * u[j * N + k];
        }
    }
    /* Near the middle of two codes fp32 and double may part. */
    assert_true(different <= 3);
    maker_free(m);
    free_inputs(&in);
}

static void threads_and_processors_change_no_bit(void **unused) {
    (void)unused;
    static const char *const forms[] = {"mxfp4", "nvfp4", "int4:128:asym"};
    inputs in = make_inputs(384, 200);
    mx_pool *pool;
    assert_int_equal(mx_pool_create(3, &pool, NULL), MX_OK);
    for (int f = 0; f < 3; f++) {
        maker *a = maker_new(forms[f], "weighted+gptq", 100, 384);
        a->job.statistics = &in.statistics;
        maker_run(a, NULL);
        for (int t = 0; t < 3; t++) {
            if (t == 2 && !(mx_cpu_detect() & MX_CPU_AVX2)) continue;
            maker *b = maker_new(forms[f], "weighted+gptq", 100, 384);
            memcpy(b->x, a->x, sizeof *a->x * 100 * 384);
            b->job.statistics = &in.statistics;
            maker_cpu(t == 1 ? "scalar" : t ? "avx2" : NULL);
            maker_run(b, t ? NULL : pool);
            maker_cpu(NULL);
            assert_memory_equal(a->job.data, b->job.data, (size_t)mx_columns_bytes(a->job.form.format, 384) * 100);
            assert_memory_equal(a->job.scales, b->job.scales,
                                (size_t)mx_row_scale_bytes(&a->job.form.blocks, 384) * 100);
            assert_memory_equal(&a->report.error, &b->report.error, sizeof(double));
            maker_free(b);
        }
        maker_free(a);
    }
    mx_pool_destroy(pool);
    free_inputs(&in);
}

/* Without statistics the rule alone; inputs that were always 0, and what has no loss anyway, likewise. */
static void without_inputs_it_is_the_rule(void **unused) {
    (void)unused;
    static float none[64 * 64];
    maker *rule = maker_new("mxfp4", "search", 3, 64), *m = maker_new("mxfp4", "search+gptq", 3, 64);
    memcpy(m->x, rule->x, sizeof *m->x * 192);
    maker_run(rule, NULL);
    mx_statistics s = {.cols = 64};
    m->job.statistics = &s;
    maker_run(m, NULL);
    assert_true(m->report.unseen);
    assert_memory_equal(m->job.data, rule->job.data, 96);
    s.rows = 5;
    s.hessian = none;
    maker_run(m, NULL);
    assert_false(m->report.unseen);
    assert_memory_equal(m->job.data, rule->job.data, 96);
    assert_memory_equal(m->job.scales, rule->job.scales, 6);
    maker_free(m);
    inputs in = make_inputs(64, 50);
    m = maker_new("nvfp4", "gptq", 3, 64);
    float *exact = maker_widen(rule);
    memcpy(m->x, exact, sizeof *exact * 192);
    m->job.statistics = &in.statistics;
    maker_run(m, NULL);
    assert_true(m->report.lossless);
    free(exact);
    maker_free(m);
    maker_free(rule);
    free_inputs(&in);
}

static void damaged_hessians_are_refused(void **unused) {
    (void)unused;
    inputs in = make_inputs(64, 50);
    maker *m = maker_new("mxfp4", "gptq", 3, 64);
    mx_quantize_report report;
    mx_error error;
    m->job.statistics = &in.statistics;
    const float before = in.hessian[7 * 65];
    in.hessian[7 * 65] = NAN;
    assert_int_equal(mx_quantize_matrix(&m->job, NULL, &report, &error), MX_INVALID_ARGUMENT);
    assert_non_null(strstr(error.text, "column 7 of the statistics' Hessian has nan"));
    in.hessian[7 * 65] = -1;
    assert_int_equal(mx_quantize_matrix(&m->job, NULL, &report, &error), MX_INVALID_ARGUMENT);
    in.hessian[7 * 65] = before;
    in.hessian[7 * 64 + 9] = 1000;
    assert_int_equal(mx_quantize_matrix(&m->job, NULL, &report, &error), MX_INVALID_ARGUMENT);
    assert_non_null(strstr(error.text, "not positive definite"));
    in.hessian[7 * 64 + 9] = NAN;
    assert_int_equal(mx_quantize_matrix(&m->job, NULL, &report, &error), MX_INVALID_ARGUMENT);
    maker_free(m);
    free_inputs(&in);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(less_is_lost_than_by_rounding),        cmocka_unit_test(it_is_the_paper_s),
        cmocka_unit_test(threads_and_processors_change_no_bit), cmocka_unit_test(without_inputs_it_is_the_rule),
        cmocka_unit_test(damaged_hessians_are_refused),
    };
    return cmocka_run_group_tests_name("gptq", tests, NULL, NULL);
}
