/* A whole matrix: threads and processors, what is lossless, what is kept, and input that is wrong. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <float.h>

#include "base/cpu.h"
#include "base/threads.h"
#include "quantize_maker.h"

static const char *const forms[] = {
    "bf16",       "mxfp4", "mxfp4:16",    "mxfp4:64", "amxfp4",   "nvfp4",   "mxfp6_e2m3",   "mxfp6_e3m2",  "mxfp8",
    "mxfp8_e5m2", "fp8",   "fp8:channel", "int8:32",  "int8:128", "int4:64", "int4:32:asym", "int8:64:asym"};
enum { FORMS = sizeof forms / sizeof *forms };

static bool has(const maker *m, char what) {
    return what == 's'   ? m->job.form.blocks.columns != 0
           : what == 'z' ? m->job.form.blocks.zeros
                         : m->job.form.post != MX_POST_NONE;
}

static void compare(const maker *a, const maker *b) {
    const int64_t rows = a->job.rows, cols = a->job.cols;
    assert_memory_equal(a->job.data, b->job.data, (size_t)(rows * mx_columns_bytes(a->job.form.format, cols)));
    if (has(a, 's'))
        assert_memory_equal(a->job.scales, b->job.scales,
                            (size_t)(rows * mx_row_scale_bytes(&a->job.form.blocks, cols)));
    if (has(a, 'z'))
        assert_memory_equal(a->job.zeros, b->job.zeros, (size_t)(rows * mx_row_zero_bytes(&a->job.form.blocks, cols)));
    if (has(a, 'p'))
        assert_memory_equal(a->job.post, b->job.post,
                            sizeof(float) * (size_t)(a->job.form.post == MX_POST_ROW ? rows : 1));
    assert_memory_equal(&a->report.square, &b->report.square, sizeof(double));
    assert_memory_equal(&a->report.error, &b->report.error, sizeof(double));
    assert_memory_equal(&a->report.largest_error, &b->report.largest_error, sizeof(double));
    assert_true(a->report.saturated == b->report.saturated && a->report.zero_blocks == b->report.zero_blocks);
}

/* Bits and report are the same with any number of threads and any instruction set. */
static void threads_and_processors_change_no_bit(void **unused) {
    (void)unused;
    mx_pool *pool;
    static const char *const rules[] = {"ocp", "search", "weighted"};
    double square[512];
    for (int k = 0; k < 512; k++) square[k] = 1 + k % 9;
    const mx_statistics statistics = {.cols = 512, .rows = 3, .square = square};
    assert_int_equal(mx_pool_create(3, &pool, NULL), MX_OK);
    for (int f = 0; f < FORMS; f++)
        for (int r = 0; r < 3; r++) {
            const bool nvfp4 = !strcmp(forms[f], "nvfp4") && r == 1;
            maker *a = maker_new(forms[f], nvfp4 ? "search+four-over-six+tensor-search" : rules[r], 300, 512);
            a->job.statistics = &statistics;
            maker_run(a, NULL);
            static const char *const tiers[] = {"", "scalar", "avx2"};
            for (int t = 0; t < 3; t++) {
                unsigned cpu = mx_cpu_detect();
                if (t == 2 && !(cpu & MX_CPU_AVX2)) continue;
                maker *b = maker_new(forms[f], nvfp4 ? "search+four-over-six+tensor-search" : rules[r], 300, 512);
                memcpy(b->x, a->x, sizeof *a->x * 300 * 512);
                b->job.statistics = &statistics;
                maker_cpu(t ? tiers[t] : NULL);
                maker_run(b, t ? NULL : pool);
                maker_cpu(NULL);
                compare(a, b);
                maker_free(b);
            }
            maker_free(a);
        }
    mx_pool_destroy(pool);
}

/* Numbers that `form` holds: widened from any codes and scales. */
static void fill_with_mxfp4(maker *m, int low, int high) {
    for (int64_t b = 0; b < m->job.rows * m->job.cols / 32; b++) {
        const int e = low + (int)(maker_any() % (unsigned)(high - low + 1)), most = 1 + (int)(maker_any() % 7);
        for (int i = 0; i < 32; i++)
            m->x[b * 32 + i] =
                ldexpf(mx_element_value(MX_E2M1, maker_any() % ((unsigned)most + 1) | (maker_any() & 8)), e);
    }
}

static void what_is_mxfp4_stays_what_it_is(void **unused) {
    (void)unused;
    static const struct {
        const char *form, *recipe;
        int low, high;
        bool lossless;
    } all[] = {{"mxfp4", "ocp", -127, 125, true},       {"mxfp4", "overflow", -127, 125, true},
               {"mxfp4", "search", -127, 125, true},    {"mxfp4", "keep", -127, 125, true},
               {"mxfp4:16", "search", -127, 125, true}, {"mxfp8", "search", -60, 60, true},
               {"amxfp4", "search", -60, 60, true},     {"mxfp6_e2m3", "ocp", -60, 60, true},
               {"mxfp6_e3m2", "ocp", -60, 60, true},    {"mxfp8_e5m2", "ocp", -60, 60, true},
               {"nvfp4", "ocp", -12, 2, true},          {"nvfp4", "search+four-over-six", -40, -26, true},
               {"nvfp4", "ocp", -20, 10, false},        {"bf16", "ocp", -60, 60, true},
               {"int4:32", "search", -3, 3, false}};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        maker *m = maker_new(all[i].form, all[i].recipe, 64, 128);
        fill_with_mxfp4(m, all[i].low, all[i].high);
        maker_run(m, NULL);
        float *out = maker_widen(m);
        bool lossless = true;
        for (int k = 0; k < 64 * 128; k++) lossless &= same(out[k], m->x[k]);
        if (lossless != all[i].lossless || m->report.lossless != lossless)
            fail_msg("%s, %s: lossless %d, reported %d", all[i].form, all[i].recipe, lossless, m->report.lossless);
        assert_true(lossless == (m->report.error <= 0 && m->report.largest_error <= 0));
        free(out);
        maker_free(m);
    }
}

/* E4M3 has 18 powers of two. One block at 2^high, another `span` below, of which half has the codes 0 and `code` alone:
 * that half is exact with any exponent of which its numbers are halves, not only with the one that OCP gives it. */
static void nvfp4_loses_nothing_where_its_exponents_suffice(void **unused) {
    (void)unused;
    static const struct {
        int code, most; /* the widest span that is lossless */
    } all[] = {{1, 17}, {2, 18}, {3, 17}, {4, 19}, {5, 18}, {6, 20}, {7, 19}};
    static const int highs[] = {0, 100, -100, -125};
    for (int h = 0; h < 4; h++)
        for (size_t i = 0; i < sizeof all / sizeof *all; i++)
            for (int span = 7; span <= 21; span++) {
                /* The tensor's scale is no less than 2^-126, and blocks' no less than 2^-9 times that. */
                const int most = all[i].most - (highs[h] < -118 ? -118 - highs[h] : 0);
                maker *m = maker_new("nvfp4", "search", 2, 64);
                memset(m->x, 0, sizeof *m->x * 128);
                for (int k = 0; k < 32; k++) {
                    m->x[k] = ldexpf(mx_element_value(MX_E2M1, maker_any() & 15), highs[h]);
                    if (k % 3) m->x[64 + k] = ldexpf(mx_element_value(MX_E2M1, (unsigned)all[i].code), highs[h] - span);
                }
                m->x[1] = ldexpf(6, highs[h]);
                m->x[17] = ldexpf(-6, highs[h]);
                maker_run(m, NULL);
                if (m->report.lossless != (span <= most))
                    fail_msg("2^%d, codes 0 and %d at 2^-%d: lossless %d", highs[h], all[i].code, span,
                             m->report.lossless);
                /* Else nothing is special. */
                assert_true(span <= most || same(m->gain, 1 / fmaxf(ldexpf(6, highs[h]), 0x1p-100f) * 2688));
                float *out = maker_widen(m);
                for (int k = 0; k < 128 && span <= most; k++) assert_true(same(out[k], m->x[k]));
                free(out);
                maker_free(m);
            }
}

/* The same bytes again where a block's largest code is 4 or 6. */
static void bytes_are_the_same_again(void **unused) {
    (void)unused;
    maker *m = maker_new("mxfp4", "ocp", 32, 128);
    uint8_t codes[32 * 64], scales[32 * 4];
    for (size_t i = 0; i < sizeof codes; i++) codes[i] = (uint8_t)maker_any();
    for (size_t i = 0; i < sizeof scales; i++) scales[i] = (uint8_t)(2 + maker_any() % 250);
    for (size_t i = 0; i < sizeof scales; i++) codes[i * 16] = (uint8_t)(i % 2 ? 0xE1 : 0x86);
    const mx_matrix source = {.format = MX_MXFP4,
                              .rows = 32,
                              .cols = 128,
                              .data = codes,
                              .row_stride = 64,
                              .scales = scales,
                              .scale_stride = 4};
    for (int n = 0; n < 32; n++) mx_matrix_widen_row(m->x + n * 128, &source, n);
    maker_run(m, NULL);
    assert_memory_equal(m->job.data, codes, sizeof codes);
    assert_memory_equal(m->job.scales, scales, sizeof scales);
    assert_true(m->report.lossless && m->report.square > 0);
    maker_free(m);
}

/* ---- input that is wrong ------------------------------------------------------------------------------------------
 */

static void fails(const maker *m, mx_status status, const char *text) {
    mx_error error = {0};
    mx_quantize_report report;
    assert_int_equal(mx_quantize_matrix(&m->job, NULL, &report, &error), status);
    if (!strstr(error.text, text)) fail_msg("\"%s\" does not say \"%s\"", error.text, text);
}

static void what_is_no_number_is_named(void **unused) {
    (void)unused;
    for (int f = 0; f < FORMS; f++) {
        maker *m = maker_new(forms[f], "ocp", 70, 1024);
        m->x[69 * 1024 + 3] = NAN;
        m->x[68 * 1024 + 1000] = -INFINITY;
        fails(m, MX_INVALID_FILE, "matrix: row 68, column 1000 is -infinity");
        m->x[68 * 1024 + 1000] = 1;
        fails(m, MX_INVALID_FILE, "matrix: row 69, column 3 is NaN");
        m->x[68 * 1024 + 1000] = -INFINITY;
        m->x[68 * 1024 + 1001] = 0.0625f;
        m->job.allow_nonfinite = true;
        maker_run(m, NULL);
        assert_int_equal(m->report.nonfinite, 2);
        assert_false(m->report.lossless);
        float *out = maker_widen(m);
        for (int i = 0; i < 70 * 1024; i++) assert_true(isfinite(out[i]));
        assert_true(fabsf(out[69 * 1024 + 3]) < 0.002f); /* the nearest to 0 */
        assert_true(out[68 * 1024 + 1000] < -0.02f);
        free(out);
        maker_free(m);
    }
    /* A block of nothing else. */
    maker *m = maker_new("mxfp4", "ocp", 1, 32);
    for (int i = 0; i < 32; i++) m->x[i] = i % 2 ? INFINITY : NAN;
    m->job.allow_nonfinite = true;
    maker_run(m, NULL);
    assert_int_equal(m->report.nonfinite, 32);
    maker_free(m);
}

static void sizes_and_statistics_that_do_not_fit_are_named(void **unused) {
    (void)unused;
    static const struct {
        const char *form;
        int64_t cols;
        const char *says;
    } sizes[] = {{"mxfp4", 40, "40 columns, mxfp4 wants a multiple of 32"},
                 {"nvfp4", 16, "nvfp4 wants a multiple of 32"},
                 {"mxfp4:64", 96, "mxfp4:64 wants a multiple of 64"},
                 {"int4:128", 2880, "2880 columns, int4:128 wants a multiple of 128"},
                 {"fp8", 33, "fp8 wants a multiple of 32"}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        maker *m = maker_new(sizes[i].form, "ocp", 2, sizes[i].cols);
        fails(m, MX_INVALID_ARGUMENT, sizes[i].says);
        maker_free(m);
    }
    maker *m = maker_new("mxfp4", "weighted", 2, 32);
    double square[32] = {1};
    mx_statistics s = {.cols = 32, .rows = 1};
    fails(m, MX_INVALID_ARGUMENT, "matrix: weighted needs statistics");
    m->job.statistics = &s;
    fails(m, MX_INVALID_ARGUMENT, "weighted needs statistics");
    s.square = square;
    s.cols = 64;
    fails(m, MX_INVALID_ARGUMENT, "has 32 columns, the statistics are of 64");
    s.cols = 32;
    square[3] = NAN;
    fails(m, MX_INVALID_ARGUMENT, "column 3 are nan");
    square[3] = -1;
    fails(m, MX_INVALID_ARGUMENT, "column 3 are -1");
    square[3] = 0;
    maker_run(m, NULL);
    assert_false(m->report.unseen);
    s.rows = 0; /* of an expert that no token went to */
    maker_run(m, NULL);
    assert_true(m->report.unseen);
    m->job.recipe = (mx_quantize_recipe){.gptq = true};
    s.rows = 1;
    fails(m, MX_INVALID_ARGUMENT, "gptq needs statistics");
    m->job.recipe = (mx_quantize_recipe){.four_over_six = true};
    fails(m, MX_INVALID_ARGUMENT, "matrix: ocp+four-over-six");
    m->job.recipe = (mx_quantize_recipe){0};
    m->job.rows = -1;
    fails(m, MX_INVALID_ARGUMENT, "-1 x 32");
    m->job.rows = 0;
    maker_run(m, NULL);
    assert_true(m->report.lossless);
    m->job.rows = 2;
    m->job.form = (mx_form){.format = MX_F16};
    fails(m, MX_INVALID_ARGUMENT, "nothing to quantise to");
    maker_free(m);
}

static void it_can_be_stopped(void **unused) {
    (void)unused;
    for (int f = 0; f < FORMS; f++) {
        const volatile sig_atomic_t stop = 1;
        maker *m = maker_new(forms[f], "ocp", 40, 128);
        m->job.stop = &stop;
        fails(m, MX_CANCELLED, "matrix: interrupted");
        maker_free(m);
    }
}

/* Tiny and huge tensors: scales stay numbers, weights finite, and the loss what the form's is. */
static void any_size_of_numbers_will_do(void **unused) {
    (void)unused;
    for (int f = 0; f < FORMS; f++)
        for (int e = -149; e <= 120; e += e < -90 || e > 110 ? 1 : 20) {
            maker *m = maker_new(forms[f], "search", 4, 128);
            for (int i = 0; i < 512; i++) m->x[i] = ldexpf(fmaxf(-3.9f, fminf(3.9f, 100 * m->x[i])), e);
            if (e == 120)
                for (int i = 0; i < 512; i += 5) m->x[i] = i % 2 ? FLT_MAX : -FLT_MAX;
            maker_run(m, NULL);
            float *out = maker_widen(m);
            double error = 0, square = 0;
            for (int i = 0; i < 512; i++) {
                if (!isfinite(out[i])) fail_msg("%s, 2^%d: %a became %a", forms[f], e, (double)m->x[i], (double)out[i]);
                square += (double)m->x[i] * (double)m->x[i];
                error += ((double)m->x[i] - (double)out[i]) * ((double)m->x[i] - (double)out[i]);
            }
            if (e > -95 && e < 120 && error > 0.05 * square)
                fail_msg("%s, 2^%d: %g of %g is lost", forms[f], e, error, square);
            assert_true(isfinite(m->report.error) && m->report.error <= 1.001 * square);
            free(out);
            maker_free(m);
        }
}

static void bf16_safe_is_said_of_what_is(void **unused) {
    (void)unused;
    static const struct {
        const char *form;
        int e;
        bool safe;
    } all[] = {{"mxfp4", 0, true}, {"mxfp4", -126, false}, {"mxfp4:16", 0, true},  {"mxfp4:16", -126, false},
               {"nvfp4", 0, true}, {"mxfp8", 0, true},     {"mxfp8", -115, false}, {"int8:32", 0, false},
               {"fp8", 0, true},   {"amxfp4", 0, true}};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        maker *m = maker_new(all[i].form, "ocp", 2, 64);
        for (int k = 0; k < 128; k++) m->x[k] = ldexpf(k % 2 ? 3 : -4, all[i].e);
        maker_run(m, NULL);
        const mx_matrix view = mx_quantize_view(&m->job);
        assert_int_equal(view.bf16_safe, all[i].safe);
        assert_int_equal(view.format, strcmp(all[i].form, "mxfp4") ? m->job.form.format : MX_MXFP4);
        maker_free(m);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(threads_and_processors_change_no_bit),
        cmocka_unit_test(what_is_mxfp4_stays_what_it_is),
        cmocka_unit_test(nvfp4_loses_nothing_where_its_exponents_suffice),
        cmocka_unit_test(bytes_are_the_same_again),
        cmocka_unit_test(what_is_no_number_is_named),
        cmocka_unit_test(sizes_and_statistics_that_do_not_fit_are_named),
        cmocka_unit_test(it_can_be_stopped),
        cmocka_unit_test(any_size_of_numbers_will_do),
        cmocka_unit_test(bf16_safe_is_said_of_what_is),
    };
    return cmocka_run_group_tests_name("matrix", tests, NULL, NULL);
}
