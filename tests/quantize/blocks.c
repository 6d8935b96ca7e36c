/* Each block by its definition, in double: scales by every rule, the nearest codes, what is said of the loss. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <float.h>

#include "golden.h"
#include "quantize_maker.h"

static const char *const e8m0_forms[] = {"mxfp4",      "mxfp4:16", "mxfp4:64",  "mxfp6_e2m3",
                                         "mxfp6_e3m2", "mxfp8",    "mxfp8_e5m2"};
enum { E8M0_FORMS = sizeof e8m0_forms / sizeof *e8m0_forms };

/* Numbers of every kind, block by block: all exponents, subnormals, zeros, ties, single numbers. */
static void fill(maker *m, int columns) {
    const int64_t blocks = m->job.rows * m->job.cols / columns;
    for (int64_t b = 0; b < blocks; b++) {
        float *x = m->x + b * columns;
        const int top = b < 278 ? (int)b - 149 : (int)(maker_any() % 60) - 30;
        for (int i = 0; i < columns; i++) {
            const int below = i == 3 ? 0 : (int)(maker_any() % 9);
            x[i] = ldexpf((float)(128 + maker_any() % 128) / 128, top - below > -150 ? top - below : -149);
            if (maker_any() & 1) x[i] = -x[i];
        }
        if (b % 16 == 1) memset(x, 0, sizeof *x * (size_t)columns);
        if (b % 16 == 2) x[5] = -0.0f;
        if (b % 16 == 3)
            for (int i = 0; i < columns; i++) x[i] = ldexpf((float)(maker_any() % 25), top - 4 > -149 ? top - 4 : -149);
        if (b % 16 == 4)
            for (int i = 1; i < columns; i++) x[i] = 0;
        for (int i = 0; i < columns; i++)
            if (!isfinite(x[i])) x[i] = FLT_MAX;
    }
}

static double worth(const maker *m, const uint8_t *data, int64_t k, double scale) {
    return (double)mx_element_value(m->job.form.format, mx_element_get(m->job.form.format, data, k)) * scale;
}

/* Loss of a block with the scale 2^e; infinite where a weight would be. */
static double loss_of(const maker *m, const float *x, const double *weight, int e) {
    const mx_form *f = &m->job.form;
    double sum = 0;
    if (e < -127 || e > 127) return INFINITY;
    for (int i = 0; i < f->blocks.columns; i++) {
        const unsigned code = mx_element_code(f->format, (float)ldexp((double)x[i], -e));
        const double w = ldexp((double)mx_element_value(f->format, code), e);
        if (fabs(w) > (double)FLT_MAX) return INFINITY;
        sum += (weight ? weight[i] : 1) * ((double)x[i] - w) * ((double)x[i] - w);
    }
    return sum;
}

static int ocp(const maker *m, const float *x) {
    float largest = 0;
    int exponent;
    for (int i = 0; i < m->job.form.blocks.columns; i++) largest = fmaxf(largest, fabsf(x[i]));
    if (!(largest > 0)) return 0;
    frexpf(largest, &exponent);
    const int e = exponent - 1 - mx_element_emax(m->job.form.format);
    return e < -127 ? -127 : e;
}

/* One up where `largest` over the scale lies nearer to the next power of two than to the largest element: that power is
 * what would follow the largest (E4M3, which has one mantissa less at its end: what would be 480). */
static int overflow(const maker *m, const float *x) {
    const mx_format format = m->job.form.format;
    const int e = ocp(m, x);
    double largest = 0;
    for (int i = 0; i < m->job.form.blocks.columns; i++) largest = fmax(largest, fabs((double)x[i]));
    const double q = ldexp(largest, -e), next = format == MX_E4M3 ? 480 : ldexp(1, mx_element_emax(format) + 1);
    const double middle = ((double)mx_element_largest(format) + next) / 2;
    const bool over = format == MX_E4M3 ? q > middle : q >= middle;
    return over && loss_of(m, x, NULL, e + 1) < INFINITY ? e + 1 : e;
}

static void every_block_has_its_rule_s_scale_and_the_nearest_codes(void **unused) {
    (void)unused;
    static const char *const rules[] = {"ocp", "overflow", "search", "weighted"};
    double weight[256];
    for (int i = 0; i < 256; i++) weight[i] = i % 5 ? (double)(maker_any() % 1000) : 0;
    const mx_statistics statistics = {.cols = 256, .rows = 7, .square = weight};
    for (int f = 0; f < E8M0_FORMS; f++)
        for (int rule = 0; rule < 4; rule++) {
            maker *m = maker_new(e8m0_forms[f], rules[rule], 90, 256);
            const int n = m->job.form.blocks.columns, bits = mx_element_bits(m->job.form.format);
            fill(m, n);
            m->job.statistics = &statistics;
            maker_run(m, NULL);
            int64_t zeros = 0, saturated = 0;
            double square = 0, error = 0, most = 0;
            for (int64_t b = 0; b < m->job.rows * m->job.cols / n; b++) {
                const float *x = m->x + b * n;
                const double *w = rule == 3 ? weight + b * n % 256 : NULL;
                const int e = (int)m->job.scales[b] - 127, base = ocp(m, x);
                bool none = true;
                for (int i = 0; i < n; i++) none &= same(x[i], 0);
                zeros += none;
                if (rule == 0) assert_int_equal(e, base);
                if (rule == 1) assert_int_equal(e, overflow(m, x));
                if (rule >= 2) {
                    double least = INFINITY;
                    for (int step = -2; step <= 2; step++) least = fmin(least, loss_of(m, x, w, base + step));
                    /* fp32 decides; and what is as good as OCP's is OCP's. */
                    if (loss_of(m, x, w, e) > least * (1 + 1e-5)) fail_msg("%s: block %d", e8m0_forms[f], (int)b);
                    if (e != base) assert_true(loss_of(m, x, w, e) < loss_of(m, x, w, base));
                }
                for (int i = 0; i < n; i++) {
                    const double q = ldexp((double)x[i], -e);
                    const unsigned code = mx_element_get(m->job.form.format, m->job.data + b * n * bits / 8, i);
                    const unsigned expected = mx_element_code(m->job.form.format, (float)q);
                    if (code != expected)
                        fail_msg("%s: %a at scale %d is %u, expected %u", e8m0_forms[f], (double)x[i], e, code,
                                 expected);
                    const double d = fabs((double)x[i] - worth(m, m->job.data + b * n * bits / 8, i, ldexp(1, e)));
                    square += (double)x[i] * (double)x[i];
                    error += d * d;
                    most = fmax(most, d);
                    saturated += fabs(q) > (double)mx_element_largest(m->job.form.format);
                }
            }
            assert_int_equal(m->report.zero_blocks, zeros);
            assert_int_equal(m->report.saturated, saturated);
            assert_true(fabs(m->report.square - square) <= 1e-5 * square);
            assert_true(fabs(m->report.error - error) <= 1e-5 * error);
            assert_true(fabs(m->report.largest_error - most) <= 1e-6 * most);
            assert_false(m->report.lossless);
            float *all = maker_widen(m);
            for (int i = 0; i < 90 * 256; i++) assert_true(isfinite(all[i]));
            free(all);
            maker_free(m);
        }
}

/* Positive and negative numbers: as if each side were a block of its own. */
static void two_scales_are_those_of_the_sides(void **unused) {
    (void)unused;
    maker *m = maker_new("amxfp4", "search", 8, 64), *side[2];
    for (int i = 0; i < 512; i++) m->x[i] = fabsf(m->x[i]) * (maker_any() % 3 ? 1 : -0.2f);
    maker_run(m, NULL);
    for (int s = 0; s < 2; s++) {
        side[s] = maker_new("mxfp4", "search", 8, 64);
        for (int i = 0; i < 512; i++) side[s]->x[i] = (m->x[i] < 0) == s ? m->x[i] : 0;
        maker_run(side[s], NULL);
        for (int b = 0; b < 16; b++) assert_int_equal(m->job.scales[2 * b + s], side[s]->job.scales[b]);
    }
    for (int i = 0; i < 512; i++)
        assert_int_equal(mx_element_get(MX_E2M1, m->job.data, i),
                         mx_element_get(MX_E2M1, side[m->x[i] < 0]->job.data, i));
    assert_true(fabs(m->report.error - side[0]->report.error - side[1]->report.error) < 1e-9);
    maker *one = maker_new("mxfp4", "search", 8, 64);
    memcpy(one->x, m->x, sizeof *m->x * 512);
    maker_run(one, NULL);
    assert_true(m->report.error < one->report.error);
    maker_free(one);
    maker_free(side[0]);
    maker_free(side[1]);
    maker_free(m);
}

/* ---- NVFP4 ------------------------------------------------------------------------------------------------------- */

static double nvfp4_loss(const float *x, int code, float post, float gain) {
    const uint8_t byte = (uint8_t)code;
    const float scale = mx_scale_value(MX_SCALE_E4M3, &byte);
    double sum = 0;
    for (int i = 0; i < 16; i++) {
        const float w = mx_element_value(MX_E2M1, mx_element_code(MX_E2M1, x[i] / (scale / gain))) * scale * post;
        sum += ((double)x[i] - (double)w) * ((double)x[i] - (double)w);
    }
    return sum;
}

static int e4m3(float x) {
    const int code = (int)mx_scale_code(MX_SCALE_E4M3, x);
    return code ? code : 1;
}

static void nvfp4_has_the_scales_of_its_rule(void **unused) {
    (void)unused;
    static const char *const recipes[] = {"ocp", "search", "four-over-six", "search+four-over-six"};
    for (int r = 0; r < 4; r++) {
        maker *m = maker_new("nvfp4", recipes[r], 40, 96);
        for (int64_t b = 0; b < 40 * 6; b++)
            for (int i = 0; i < 16; i++) m->x[b * 16 + i] = b % 31 == 7 ? 0 : ldexpf(m->x[b * 16 + i], -(int)(b % 24));
        maker_run(m, NULL);
        float largest = 0;
        for (int i = 0; i < 40 * 96; i++) largest = fmaxf(largest, fabsf(m->x[i]));
        const float gain = 1 / largest * (r >= 2 ? 6.0f * 256 : 6.0f * 448), post = 1 / gain;
        assert_true(same(m->job.post[0], post));
        int64_t zeros = 0;
        for (int64_t b = 0; b < 40 * 6; b++) {
            const float *x = m->x + b * 16;
            const int code = m->job.scales[b];
            largest = 0;
            for (int i = 0; i < 16; i++) largest = fmaxf(largest, fabsf(x[i]));
            if (same(largest, 0)) {
                zeros++;
                assert_int_equal(code, 0x20);
                continue;
            }
            const int six = e4m3(gain * (largest / 6)), four = e4m3(gain * (largest / 4));
            double least = nvfp4_loss(x, six, post, gain);
            if (r >= 2) least = fmin(least, nvfp4_loss(x, four, post, gain));
            for (int c = six - 4; r % 2 && c <= six + 7; c++)
                if (c >= 1 && c <= 126) least = fmin(least, nvfp4_loss(x, c, post, gain));
            if (r == 0) assert_int_equal(code, six);
            if (r == 2) assert_true(code == six || code == four);
            assert_true(nvfp4_loss(x, code, post, gain) <= least * (1 + 1e-5));
            for (int i = 0; i < 16; i++) {
                const uint8_t byte = (uint8_t)code;
                assert_int_equal(mx_element_get(MX_E2M1, m->job.data, b * 16 + i),
                                 mx_element_code(MX_E2M1, x[i] / (mx_scale_value(MX_SCALE_E4M3, &byte) / gain)));
            }
        }
        assert_int_equal(m->report.zero_blocks, zeros);
        maker_free(m);
    }
}

/* The tensor's scale of the least error: never more than the usual one's, and mostly less. */
static void the_tensor_s_scale_is_searched(void **unused) {
    (void)unused;
    int better = 0;
    for (int i = 0; i < 8; i++) {
        maker *m = maker_new("nvfp4", "ocp", 16, 128);
        maker_run(m, NULL);
        const double before = m->report.error;
        m->job.recipe.tensor_search = true;
        maker_run(m, NULL);
        assert_true(m->report.error <= before);
        better += m->report.error < before;
        maker_free(m);
    }
    assert_true(better > 4);
}

/* compressed-tensors stores 1 / post: what is read of that is post. */
/* As compressed-tensors computes it, torch's 2688 / largest; not the inverse of its inverse. */
static void the_tensor_s_scale_is_handed_out_as_it_was_computed(void **unused) {
    (void)unused;
    int different = 0;
    for (int i = 0; i < 300; i++) {
        maker *m = maker_new("nvfp4", "ocp", 1, 32);
        m->x[7] = ldexpf(1 + (float)maker_any() * 0x1p-24f, (int)(maker_any() % 40) - 3);
        maker_run(m, NULL);
        assert_true(same(m->gain, 1 / m->x[7] * 2688.0f));
        assert_true(same(m->job.post[0], 1 / m->gain));
        different += !same(1 / m->job.post[0], m->gain);
        maker_free(m);
    }
    assert_true(different > 20);
    maker *m = maker_new("nvfp4", "tensor-search", 1, 32);
    m->x[7] = FLT_MAX; /* 1 / gain must not be so large that a weight were infinite */
    maker_run(m, NULL);
    assert_true(same(m->job.post[0], 1 / m->gain) && isfinite(m->job.post[0] * 448 * 6));
    maker_free(m);
}

/* ---- FP8, integers, BF16 ------------------------------------------------------------------------------------------
 */

static void fp8_has_a_scale_for_all_or_for_each_row(void **unused) {
    (void)unused;
    for (int channel = 0; channel < 2; channel++) {
        maker *m = maker_new(channel ? "fp8:channel" : "fp8", "ocp", 12, 64);
        for (int i = 0; i < 12 * 64; i++) m->x[i] = ldexpf(m->x[i], i / 64);
        memset(m->x + 64, 0, 64 * sizeof *m->x);
        maker_run(m, NULL);
        float *out = maker_widen(m), all = 0;
        for (int i = 0; i < 12 * 64; i++) all = fmaxf(all, fabsf(m->x[i]));
        for (int n = 0; n < 12; n++) {
            float largest = 0;
            for (int i = 0; i < 64; i++) largest = fmaxf(largest, fabsf(m->x[n * 64 + i]));
            const float post = !channel ? all / 448 : largest > 0 ? largest / 448 : 1;
            assert_true(same(m->job.post[channel ? n : 0], post));
            for (int i = 0; i < 64; i++)
                assert_int_equal(m->job.data[n * 64 + i], mx_element_code(MX_E4M3, m->x[n * 64 + i] / post));
        }
        const double first = m->report.error;
        m->job.recipe.rule = MX_RULE_SEARCH;
        maker_run(m, NULL);
        assert_true(m->report.error <= first);
        free(out);
        maker_free(m);
    }
}

static void integers_are_the_nearest(void **unused) {
    (void)unused;
    static const char *const forms[] = {"int8:32",  "int8:64",      "int8:128",     "int4:32",      "int4:64",
                                        "int4:128", "int8:32:asym", "int4:32:asym", "int4:128:asym"};
    for (size_t f = 0; f < sizeof forms / sizeof *forms; f++) {
        maker *m = maker_new(forms[f], "ocp", 20, 128);
        const mx_form *form = &m->job.form;
        const int n = form->blocks.columns, low = form->format == MX_INT4 ? -8 : -128, high = -low - 1;
        for (int i = 0; i < 20 * 128; i++) m->x[i] = ldexpf(m->x[i] + (i / n % 3 ? 0 : 0.05f), (int)(i / n % 21) - 10);
        memset(m->x + 128, 0, 128 * sizeof *m->x);
        maker_run(m, NULL);
        double error = 0;
        for (int64_t b = 0; b < 20 * 128 / n; b++) {
            double least = 0, most = 0;
            for (int i = 0; i < n; i++) {
                least = fmin(least, (double)m->x[b * n + i]);
                most = fmax(most, (double)m->x[b * n + i]);
            }
            double range = form->blocks.zeros ? (most - least) / (high - low) : fmax(most, -least) / high;
            const float scale = mx_scale_value(MX_SCALE_BF16, m->job.scales + 2 * b);
            const int zero = form->blocks.zeros ? m->job.zeros[b] : 0;
            if (!(range > 0)) range = 1;
            assert_int_equal(mx_f32_to_bf16(scale), mx_f32_to_bf16((float)range));
            for (int i = 0; i < n; i++) {
                const double x = (double)m->x[b * n + i], wanted = x / (double)scale + zero;
                const double q = fmin(fmax(nearbyint(wanted), low), high);
                const unsigned code = mx_element_get(form->format, m->job.data, b * n + i);
                assert_int_equal((int)mx_element_value(form->format, code), (int)q);
                if (!form->blocks.zeros) assert_true(fabs(wanted) < high + 0.5); /* nothing saturates */
                const double d = x - (q - zero) * (double)scale;
                error += d * d;
            }
        }
        const double first = m->report.error;
        assert_true(fabs(first - error) < 1e-9 * error);
        m->job.recipe.rule = MX_RULE_SEARCH;
        maker_run(m, NULL);
        assert_true(form->format == MX_INT4 ? m->report.error < first : m->report.error <= first);
        float *out = maker_widen(m);
        double widened = 0;
        for (int i = 0; i < 20 * 128; i++)
            widened += ((double)m->x[i] - (double)out[i]) * ((double)m->x[i] - (double)out[i]);
        assert_true(fabs(widened - m->report.error) < 1e-6 * widened);
        free(out);
        maker_free(m);
    }
}

static void bf16_is_rounded_to_nearest(void **unused) {
    (void)unused;
    maker *m = maker_new("bf16", "ocp", 2, 33);
    m->x[5] = FLT_MAX;
    m->x[6] = -FLT_MAX;
    maker_run(m, NULL);
    for (int i = 0; i < 66; i++) {
        uint16_t bits;
        memcpy(&bits, m->job.data + 2 * i, 2);
        assert_int_equal(bits, i == 5 ? 0x7F7F : i == 6 ? 0xFF7F : mx_f32_to_bf16(m->x[i]));
    }
    assert_int_equal(m->report.saturated, 2);
    maker_free(m);
}

/* ---- what others make of the same numbers ------------------------------------------------------------------------ */

static maker *golden(const char *form, const char *recipe) {
    maker *m = maker_new(form, recipe, GOLDEN_ROWS, GOLDEN_COLS);
    memcpy(m->x, golden_x, sizeof golden_x);
    maker_run(m, NULL);
    return m;
}

/* The bytes are the same but for -0, which is 0 there. */
static void compare(mx_format format, const uint8_t *ours, const uint8_t *theirs) {
    for (int i = 0; i < GOLDEN_ROWS * GOLDEN_COLS; i++) {
        const unsigned a = mx_element_get(format, ours, i), b = mx_element_get(format, theirs, i);
        const bool zeros = same(mx_element_value(format, a), 0) && same(mx_element_value(format, b), 0);
        if (a != b && !zeros) fail_msg("number %d is %u, theirs %u", i, a, b);
    }
}

static void compressed_tensors_has_the_same_bytes(void **unused) {
    (void)unused;
    maker *m = golden("nvfp4", "ocp");
    float gain;
    memcpy(&gain, golden_nvfp4_global_scale, sizeof gain);
    assert_memory_equal(&m->gain, golden_nvfp4_global_scale, sizeof gain);
    assert_true(same(1 / gain, m->job.post[0]));
    assert_memory_equal(m->job.scales, golden_nvfp4_scales, sizeof golden_nvfp4_scales);
    compare(MX_E2M1, m->job.data, golden_nvfp4_packed);
    maker_free(m);
    m = golden("mxfp4", "overflow");
    assert_memory_equal(m->job.scales, golden_mxfp4_scales, sizeof golden_mxfp4_scales);
    compare(MX_E2M1, m->job.data, golden_mxfp4_packed);
    maker_free(m);
    m = golden("fp8", "ocp");
    assert_memory_equal(m->job.post, golden_fp8_tensor_scale, sizeof golden_fp8_tensor_scale);
    compare(MX_E4M3, m->job.data, golden_fp8_tensor);
    maker_free(m);
    m = golden("fp8:channel", "ocp");
    assert_memory_equal(m->job.post, golden_fp8_channel_scale, sizeof golden_fp8_channel_scale);
    compare(MX_E4M3, m->job.data, golden_fp8_channel);
    maker_free(m);
}

/* Ties go to the smaller code there, to the even one here: the distance is the same. */
static void gguf_has_the_same_scales_and_distances(void **unused) {
    (void)unused;
    maker *m = golden("mxfp4", "ocp");
    int ties = 0;
    for (int b = 0; b < GOLDEN_ROWS * GOLDEN_COLS / 32; b++) {
        const uint8_t *block = golden_gguf_mxfp4 + b * MX_MXFP4_GGML_BYTES;
        float theirs[32], ours[32];
        mx_mxfp4_ggml_widen(theirs, block);
        mx_mxfp4_widen(ours, m->job.data + 16 * b, m->job.scales[b]);
        assert_int_equal(block[0], m->job.scales[b]);
        for (int i = 0; i < 32; i++) {
            const float x = m->x[b * 32 + i];
            assert_true(same(fabsf(x - theirs[i]), fabsf(x - ours[i])));
            ties += !same(theirs[i], ours[i]);
        }
    }
    assert_true(ties < 60);
    maker_free(m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_block_has_its_rule_s_scale_and_the_nearest_codes),
        cmocka_unit_test(two_scales_are_those_of_the_sides),
        cmocka_unit_test(nvfp4_has_the_scales_of_its_rule),
        cmocka_unit_test(the_tensor_s_scale_is_searched),
        cmocka_unit_test(the_tensor_s_scale_is_handed_out_as_it_was_computed),
        cmocka_unit_test(fp8_has_a_scale_for_all_or_for_each_row),
        cmocka_unit_test(integers_are_the_nearest),
        cmocka_unit_test(bf16_is_rounded_to_nearest),
        cmocka_unit_test(compressed_tensors_has_the_same_bytes),
        cmocka_unit_test(gguf_has_the_same_scales_and_distances),
    };
    return cmocka_run_group_tests_name("blocks", tests, NULL, NULL);
}
