/* The block formats (kernels/mx.h) against ml_dtypes (tests/data/mx.golden), against formulas of their own
 * (exact_element), and against a search through all codes. */
#include "support.h"

#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/mx.h"

static const mx_format codes[] = {MX_E2M1, MX_E2M3, MX_E3M2, MX_E4M3, MX_E5M2, MX_INT8, MX_INT4};
static const char *const code_names[] = {"e2m1", "e2m3", "e3m2", "e4m3", "e5m2", "int8", "int4"};
enum { CODES = sizeof codes / sizeof *codes };

static unsigned count_of(mx_format format) {
    return 1u << mx_element_bits(format);
}

static float float_of(uint32_t bits) {
    float v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

/* The same number, sign of zero included, or NaN both. */
static bool same(float a, double b) {
    return isnan(a) ? isnan(b) : (double)a == b && !signbit(a) == !signbit(b);
}

#define check(condition, ...)                                                                                          \
    do {                                                                                                               \
        if (!(condition)) fail_msg(__VA_ARGS__);                                                                       \
    } while (0)

/* ---- elements and scales ---------------------------------------------------------------------------------------- */

/* One line of mx.golden behind "value NAME" or "code NAME". *at: codes of this name that were there before. */
static void check_golden(const char *name, bool values, char *text, unsigned *at) {
    const bool scale = !strcmp(name, "e8m0");
    mx_format format = MX_E2M1;
    for (int i = 0; i < CODES; i++) {
        if (!strcmp(name, code_names[i])) format = codes[i];
    }
    for (char *word = strtok(text, " \n"); word; word = strtok(NULL, " \n"), ++*at) {
        char *end;
        const float x = float_of((uint32_t)strtoul(word, &end, 16));
        if (values) {
            const uint8_t byte = (uint8_t)*at;
            const float found = scale ? mx_scale_value(MX_SCALE_E8M0, &byte) : mx_element_value(format, *at);
            check(same(found, (double)x), "%s %#x is %a, ml_dtypes has %a", name, *at, (double)found, (double)x);
        } else {
            const unsigned code = (unsigned)strtoul(end + 1, NULL, 16);
            const unsigned found = scale ? mx_scale_code(MX_SCALE_E8M0, x) : mx_element_code(format, x);
            check(found == code, "%s of %a is %#x, ml_dtypes has %#x", name, (double)x, found, code);
        }
    }
}

static void test_golden(void **state) {
    (void)state;
    char path[4096], line[1024], name[8] = "", kind[8] = "", last[16] = "";
    unsigned at = 0, total = 0;
    int length;
    if (!getenv("MXRUN_SOURCE")) skip();
    snprintf(path, sizeof path, "%s/tests/data/mx.golden", getenv("MXRUN_SOURCE"));
    FILE *f = fopen(path, "r");
    check(f, "%s cannot be opened", path);
    while (fgets(line, sizeof line, f)) {
        if (*line == '#' || sscanf(line, "%7s %7s%n", kind, name, &length) != 2) continue;
        if (strcmp(last, name) != 0 || strcmp(kind, "value") != 0) at = 0; /* codes count on from line to line */
        snprintf(last, sizeof last, "%s", name);
        const unsigned before = at;
        check_golden(name, !strcmp(kind, "value"), line + length, &at);
        total += at - before;
    }
    fclose(f);
    check(total > 2000, "only %u numbers in %s", total, path);
}

static void test_values(void **state) {
    (void)state;
    static const double largest[] = {6.0, 7.5, 28.0, 448.0, 57344.0, 127.0, 7.0};
    for (int i = 0; i < CODES; i++) {
        double most = 0.0;
        for (unsigned c = 0; c < count_of(codes[i]); c++) {
            const double exact = exact_element(codes[i], c);
            check(same(mx_element_value(codes[i], c), exact), "%s %#x", code_names[i], c);
            check(same(mx_element_value(codes[i], c | 0xff00), exact), "%s %#x with bits above", code_names[i], c);
            if (isfinite(exact) && exact > most) most = exact;
        }
        assert_true(most == largest[i] && (double)mx_element_largest(codes[i]) == most);
        assert_int_equal(mx_element_emax(codes[i]), ilogb(most));
    }
}

static void test_scales(void **state) {
    (void)state;
    for (int v = 0; v < 0x10000; v++) {
        uint8_t at[3] = {(uint8_t)v, (uint8_t)(v >> 8), 0xa5}, back[3] = {0xa5, 0xa5, 0xa5};
        for (int t = MX_SCALE_E8M0; t <= MX_SCALE_BF16; t++) {
            const mx_scale_type type = (mx_scale_type)t;
            if (type != MX_SCALE_BF16 && v > 255) continue;
            const float found = mx_scale_value(type, at);
            const double exact = type == MX_SCALE_E8M0 && v == 255 ? NAN : exact_scale(type, at);
            check(same(found, exact), "scale type %d, %#x: %a", t, (unsigned)v, (double)found);
            if (!isfinite(found) || found <= 0.0f) continue;
            check(mx_scale_code(type, found) == (unsigned)v, "code of scale %a", (double)found);
            memset(back, 0xa5, sizeof back);
            mx_scale_put(type, back, found);
            check(!memcmp(at, back, (size_t)mx_scale_bytes(type)) && back[mx_scale_bytes(type)] == 0xa5,
                  "put of scale %a", (double)found);
        }
    }
    assert_true(mx_scale_value(MX_SCALE_NONE, NULL) == 1.0f);
}

/* Nearest, ties to even, saturated; E8M0 takes powers of two. */
static void test_scale_codes(void **state) {
    (void)state;
    assert_int_equal(mx_scale_code(MX_SCALE_E4M3, 1e9f), 0x7e);
    assert_int_equal(mx_scale_code(MX_SCALE_E4M3, INFINITY), 0x7e);
    assert_int_equal(mx_scale_code(MX_SCALE_E4M3, 0x1p-10f), 0); /* between 0 and 2^-9 */
    assert_int_equal(mx_scale_code(MX_SCALE_E4M3, 0x1.000002p-10f), 1);
    assert_int_equal(mx_scale_code(MX_SCALE_BF16, FLT_MAX), 0x7f7f);
    assert_int_equal(mx_scale_code(MX_SCALE_BF16, INFINITY), 0x7f7f);
    assert_int_equal(mx_scale_code(MX_SCALE_BF16, 1.0f + 0x1p-8f), 0x3f80);
    assert_int_equal(mx_scale_code(MX_SCALE_BF16, 1.0f + 0x3p-8f), 0x3f82);
    assert_int_equal(mx_scale_code(MX_SCALE_E8M0, 0x1p-127f), 0);
    assert_int_equal(mx_scale_code(MX_SCALE_E8M0, 0x1p-130f), 0);
    assert_int_equal(mx_scale_code(MX_SCALE_E8M0, 0x1p127f), 254);
    for (int v = 0; v < 0x7e; v++) {
        const float low = (float)exact_element(MX_E4M3, (unsigned)v),
                    high = (float)exact_element(MX_E4M3, (unsigned)v + 1);
        const float middle = (low + high) / 2.0f;
        assert_int_equal(mx_scale_code(MX_SCALE_E4M3, middle), v + v % 2);
        assert_int_equal(mx_scale_code(MX_SCALE_E4M3, nextafterf(middle, 0.0f)), v);
        assert_int_equal(mx_scale_code(MX_SCALE_E4M3, nextafterf(middle, 1e9f)), v + 1);
    }
}

/* ---- numbers to codes ------------------------------------------------------------------------------------------- */

static void test_codes_of_values(void **state) {
    (void)state;
    for (int i = 0; i < CODES; i++) {
        const mx_format format = codes[i];
        for (unsigned c = 0; c < count_of(format); c++) {
            const double value = exact_element(format, c);
            const unsigned found = mx_element_code(format, (float)value);
            if (isnan(value)) {
                check(isnan(exact_element(format, found)), "%s of NaN is %#x", code_names[i], found);
            } else if (isinf(value)) {
                const double most = (double)mx_element_largest(format);
                check(exact_element(format, found) == copysign(most, value), "%s of infinity is %#x", code_names[i],
                      found);
            } else {
                check(found == c, "%s of %g is %#x, not %#x", code_names[i], value, found, c);
            }
        }
    }
}

static void test_special_codes(void **state) {
    (void)state;
    static const struct {
        float x;
        unsigned code[CODES];
    } cases[] = {
        {INFINITY, {0x7, 0x1f, 0x1f, 0x7e, 0x7b, 0x7f, 0xf}}, {-INFINITY, {0xf, 0x3f, 0x3f, 0xfe, 0xfb, 0x80, 0x0}},
        {FLT_MAX, {0x7, 0x1f, 0x1f, 0x7e, 0x7b, 0x7f, 0xf}},  {-FLT_MAX, {0xf, 0x3f, 0x3f, 0xfe, 0xfb, 0x80, 0x0}},
        {0x1p-149f, {0x0, 0x0, 0x0, 0x0, 0x0, 0x0, 0x8}},     {-0x1p-149f, {0x8, 0x20, 0x20, 0x80, 0x80, 0x0, 0x8}},
        {464.0f, {0x7, 0x1f, 0x1f, 0x7e, 0x5f, 0x7f, 0xf}},   {480.0f, {0x7, 0x1f, 0x1f, 0x7e, 0x60, 0x7f, 0xf}},
        {61440.0f, {0x7, 0x1f, 0x1f, 0x7e, 0x7b, 0x7f, 0xf}}, {65536.0f, {0x7, 0x1f, 0x1f, 0x7e, 0x7b, 0x7f, 0xf}},
        {127.5f, {0x7, 0x1f, 0x1f, 0x70, 0x58, 0x7f, 0xf}},   {-128.5f, {0xf, 0x3f, 0x3f, 0xf0, 0xd8, 0x80, 0x0}},
        {2.5f, {0x4, 0x12, 0x11, 0x42, 0x41, 0x2, 0xa}},      {-3.5f, {0xe, 0x36, 0x33, 0xc6, 0xc3, 0xfc, 0x4}},
    };
    for (size_t j = 0; j < sizeof cases / sizeof *cases; j++) {
        for (int i = 0; i < CODES; i++) {
            const unsigned found = mx_element_code(codes[i], cases[j].x);
            check(found == cases[j].code[i], "%s of %g is %#x, not %#x", code_names[i], (double)cases[j].x, found,
                  cases[j].code[i]);
        }
    }
    for (int i = 0; i < CODES; i++) {
        const double value = exact_element(codes[i], mx_element_code(codes[i], NAN));
        const bool has_nan = codes[i] == MX_E4M3 || codes[i] == MX_E5M2;
        check(has_nan ? isnan(value) : value == (double)mx_element_largest(codes[i]), "%s of NaN is %g", code_names[i],
              value);
    }
}

/* The code that is nearest to x: of two as near the even one, of zeros that with x's sign. */
static unsigned nearest_code(mx_format format, double x) {
    unsigned best = 0;
    double off = INFINITY;
    for (unsigned c = 0; c < count_of(format); c++) {
        const double value = exact_element(format, c), d = fabs(value - x);
        if (!isfinite(value) || (value == 0.0 && !mx_is_integer_format(format) && !signbit(value) != !signbit(x)))
            continue;
        if (d < off || (d == off && c % 2 == 0)) best = c, off = d;
    }
    return best;
}

static void test_nearest(void **state) {
    (void)state;
    rng r = rng_seeded(20);
    for (int i = 0; i < CODES; i++) {
        for (int n = 0; n < 4000; n++) {
            const int low = mx_is_integer_format(codes[i]) ? -3 : -18;
            const float x = ldexpf(rng_uniform(&r, -1.0f, 1.0f), low + (int)rng_below(&r, 20 - low));
            /* every third has few bits: many ties */
            const float with = n % 3 ? x : ldexpf(rintf(ldexpf(x, 4 - ilogbf(x))), ilogbf(x) - 4);
            const unsigned found = mx_element_code(codes[i], with), best = nearest_code(codes[i], (double)with);
            check(found == best, "%s of %.9g is %#x, nearest is %#x", code_names[i], (double)with, found, best);
        }
    }
}

/* ---- bytes ------------------------------------------------------------------------------------------------------ */

/* Every code at every place of 16, in a row whose other bits are all 0, all 1 or random. */
static void test_get_and_put(void **state) {
    (void)state;
    rng r = rng_seeded(21);
    for (int i = 0; i < CODES; i++) {
        const mx_format format = codes[i];
        const int bits = mx_element_bits(format);
        for (int k = 0; k < 16; k++) {
            for (unsigned c = 0; c < count_of(format); c++) {
                uint8_t row[18], before[18];
                for (int b = 0; b < 18; b++) before[b] = (uint8_t)(c % 3 == 2 ? rng_bits(&r) : 0u - c % 3);
                memcpy(row, before, sizeof row);
                mx_element_put(format, row + 1, k, c | 0xff00u << 1);
                check(mx_element_get(format, row + 1, k) == c, "%s: %#x at %d comes back as %#x", code_names[i], c, k,
                      mx_element_get(format, row + 1, k));
                for (int b = 0; b < 18 * 8; b++) { /* bit by bit, as the format says */
                    const int of = b - 8 - k * bits, old = before[b / 8] >> b % 8 & 1;
                    const int wanted = of >= 0 && of < bits ? (int)(c >> of & 1) : old;
                    check((row[b / 8] >> b % 8 & 1) == wanted, "%s: bit %d after %#x at %d", code_names[i], b, c, k);
                }
            }
        }
    }
}

/* ---- blocks ----------------------------------------------------------------------------------------------------- */

/* A row of every code, at every scale (BF16: of a step that meets all exponents), in blocks of every size. */
static void check_blocks(mx_format format, mx_blocks b) {
    enum { COLS = 256 };
    const int scale_bytes = mx_scale_bytes(b.scale), sides = b.sides ? 2 : 1;
    uint8_t data[COLS], scales[2 * COLS / 16 * 2];
    int8_t zeros[COLS / 16];
    float out[COLS];
    mx_matrix w = {
        .format = format, .rows = 1, .cols = COLS, .data = data, .scales = scales, .blocks = b, .zeros = zeros};
    for (int k = 0; k < COLS; k++) mx_element_put(format, data, k, (unsigned)(37 * k)); /* odd: each code */
    for (int s = 0; s < (b.scale == MX_SCALE_BF16 ? 0x10000 : 256); s += b.scale == MX_SCALE_BF16 ? 0x2b : 1) {
        for (int j = 0; j < mx_row_scale_bytes(&b, COLS) / scale_bytes; j++) { /* each scale another, one of them s */
            const int v = j == s % 2 ? s : s * 5 + j * 3;
            scales[j * scale_bytes] = (uint8_t)v;
            if (scale_bytes == 2) scales[2 * j + 1] = (uint8_t)(v >> 8);
        }
        for (int j = 0; j < COLS / b.columns; j++) zeros[j] = (int8_t)(s + 77 * j);
        mx_matrix_widen_row(out, &w, 0);
        for (int k = 0; k < COLS; k++) {
            const int block = k / b.columns;
            const double element = exact_element(format, (unsigned)(37 * k) % count_of(format));
            const double whole = element - (b.zeros ? zeros[block] : 0);
            const uint8_t *at = scales + (block * sides + (b.sides && signbit(whole))) * scale_bytes;
            const bool no_scale = b.scale == MX_SCALE_E8M0 && *at == 255;
            const float exact = (float)(whole * (no_scale ? NAN : exact_scale(b.scale, at))); /* infinite beyond fp32 */
            check(same(out[k], (double)exact), "%s, column %d, scale %#x: %a, not %a", matrix_name(&w), k, (unsigned)s,
                  (double)out[k], (double)exact);
        }
    }
}

static void test_blocks(void **state) {
    (void)state;
    for (int i = 0; i < CODES; i++) {
        for (int columns = 16; columns <= 128; columns *= 2) {
            for (int t = MX_SCALE_E8M0; t <= MX_SCALE_BF16; t++) {
                const bool both = columns == 32 || columns == 16;
                check_blocks(codes[i], (mx_blocks){columns, (mx_scale_type)t, false, false});
                if (both) check_blocks(codes[i], (mx_blocks){columns, (mx_scale_type)t, true, false});
                if (mx_is_integer_format(codes[i]))
                    check_blocks(codes[i], (mx_blocks){columns, (mx_scale_type)t, false, true});
            }
        }
    }
}

/* Every q less every zero. */
static void test_zeros(void **state) {
    (void)state;
    uint8_t data[256], scales[4] = {0x40, 0x3f, 0x40, 0x3f}; /* 0.75 */
    int8_t zeros[2];
    float out[256];
    for (int k = 0; k < 256; k++) data[k] = (uint8_t)k;
    for (int zero = -128; zero < 128; zero++) {
        mx_matrix w = {.format = MX_INT8,
                       .rows = 1,
                       .cols = 256,
                       .data = data,
                       .scales = scales,
                       .zeros = zeros,
                       .blocks = {128, MX_SCALE_BF16, false, true}};
        zeros[0] = (int8_t)zero;
        zeros[1] = (int8_t)~zero;
        mx_matrix_widen_row(out, &w, 0);
        for (int k = 0; k < 256; k++) assert_true((double)out[k] == 0.75 * ((int8_t)k - (k < 128 ? zero : ~zero)));
    }
}

/* Rows of every format against weights_random's values: strides, posts, columns that are no multiple of 32. */
static void test_rows(void **state) {
    (void)state;
    rng r = rng_seeded(22);
    for (int i = 0; i < 13 * 8; i++) {
        const mx_format format = (mx_format)(i % MX_FORMATS);
        const int64_t cols = format <= MX_BF16 ? 1 + rng_below(&r, 300) : 32 * (1 + rng_below(&r, 12));
        case_begin("rows");
        const weights w = weights_random(&r, format, 5, cols, (weight_kind)(i % 4));
        case_rename("rows of %s", matrix_name(&w.matrix));
        float *row = guarded_row(cols, "row"), part[32];
        for (int64_t n = 0; n < 5; n++) {
            mx_matrix_widen_row(row, &w.matrix, n);
            for (int64_t k = 0; k < cols; k++)
                check_close(row[k], w.exact[n * cols + k], fabs(w.exact[n * cols + k]) * 6e-8 + 0x1p-149, "row %d",
                            (int)n);
            const double post = w.matrix.post ? (double)w.matrix.post[n * w.matrix.post_step] : 1.0;
            for (int64_t k0 = 0; k0 + 32 <= cols; k0 += 32) {
                mx_matrix_widen_32(part, &w.matrix, n, k0);
                for (int k = 0; k < 32; k++) {
                    const double exact = w.exact[n * cols + k0 + k];
                    check_close(part[k] * post, exact, fabs(exact) * 1e-15, "columns from %d", (int)k0);
                }
            }
        }
        case_end();
    }
}

/* ---- products ---------------------------------------------------------------------------------------------------- */

/* Row of all codes, in blocks with scales that follow `scale`; those that make no number are other codes. */
static void fill_row(mx_matrix *w, uint8_t *data, uint8_t *scales, int8_t *zeros, int scale) {
    const mx_blocks *b = &w->blocks;
    const int64_t bytes = mx_row_scale_bytes(b, w->cols);
    float values[256];
    for (int64_t i = 0; i < bytes; i++) scales[i] = (uint8_t)(scale + 37 * (i / mx_scale_bytes(b->scale)));
    for (int64_t i = 0; i < bytes && b->scale == MX_SCALE_E8M0; i++) scales[i] -= scales[i] == 255;
    for (int64_t i = 0; i < bytes && b->scale == MX_SCALE_E4M3; i++) scales[i] &= 0x7f, scales[i] -= scales[i] == 0x7f;
    for (int64_t i = 1; i < bytes && b->scale == MX_SCALE_BF16; i += 2) scales[i] &= 0xbf; /* no infinity */
    for (int64_t i = 0; i < mx_row_zero_bytes(b, w->cols); i++) zeros[i] = (int8_t)(77 * i + scale);
    for (int64_t k = 0; k < w->cols; k++) mx_element_put(w->format, data, k, (unsigned)(37 * k + scale));
    mx_matrix_widen_row(values, w, 0);
    for (int64_t k = 0; k < w->cols; k++) {
        if (!isfinite(values[k]))
            mx_element_put(w->format, data, k, (unsigned)(k % 2) + (w->format == MX_INT4 ? 8 : 0));
    }
}

static void check_exact_product(const mx_kernels *k, mx_format format, mx_blocks blocks) {
    enum { COLS = 256 };
    const mx_product *product = k->product[format][MX_X_FP32];
    const int mark = case_mark();
    const mx_blocks *b = &blocks;
    uint8_t *data = guarded(mx_columns_bytes(format, COLS), 1, "row");
    uint8_t *scales = b->columns ? guarded(mx_row_scale_bytes(b, COLS), 1, "scales") : NULL;
    int8_t *zeros = b->zeros ? guarded(mx_row_zero_bytes(b, COLS), 1, "zeros") : NULL;
    float *x = guarded_floats(COLS * COLS, "x"), *y = guarded_floats(COLS, "y"), expected[COLS];
    float *scratch = guarded_floats(k->matmul_scratch, "scratch");
    uint8_t *packed = guarded(COLS * product->packed_bytes(COLS), 64, "packed x");
    mx_matrix w = {.format = format, .rows = 1, .cols = COLS, .data = data, .scales = scales, .zeros = zeros};
    w.blocks = blocks;
    case_rename("%s %s of every scale", k->name, matrix_name(&w));
    for (int i = 0; i < COLS * COLS; i++) x[i] = i % (COLS + 1) == 0 ? 1.0f : 0.0f; /* unit vectors */
    product->pack(packed, x, COLS, COLS);
    for (int scale = 0; scale < (b->columns ? 256 : 1); scale += 11) {
        const int most = k->matmul_scratch ? COLS : 8; /* scalar code is slow, and the same for all rows */
        fill_row(&w, data, scales, zeros, scale);
        mx_matrix_widen_row(expected, &w, 0);
        for (int first = 0; first < COLS; first += most) {
            mx_matmul m = {.w = w,
                           .x = packed + first * product->packed_bytes(COLS),
                           .x_stride = product->packed_bytes(COLS),
                           .rows = most,
                           .n1 = 1,
                           .y = y + first,
                           .y_stride = 1,
                           .scratch = scratch};
            product->matmul(&m);
        }
        for (int i = 0; i < COLS; i++) check_close(y[i], (double)expected[i], 0.0, "scale %d: %d", scale, i);
        mx_matmul one = {.w = w,
                         .x = packed + scale * product->packed_bytes(COLS),
                         .x_stride = product->packed_bytes(COLS),
                         .rows = 1,
                         .n1 = 1,
                         .y = y,
                         .y_stride = 1,
                         .scratch = scratch};
        product->matmul(&one);
        check_close(y[0], (double)expected[scale], 0.0, "scale %d, one row", scale);
    }
    case_release(mark);
}

/* Products that are exact in fp32 whatever the order: every code, every scale byte, up to where weights are no floats.
 */
static void test_exact_products(void **state) {
    (void)state;
    const mx_kernels *tiers[MAX_TIERS];
    const int tier_count = tiers_here(tiers);
    for (int i = 0; i < CODES * tier_count; i++) {
        const mx_format format = codes[i % CODES];
        const mx_kernels *k = tiers[i / CODES];
        int count;
        const mx_blocks *blocks = blocks_of(format, &count);
        case_begin("exact products");
        for (int j = 0; j < count; j++) check_exact_product(k, format, blocks[j]);
        case_end();
    }
}

/* Codes that are there become the same codes again. */
static void test_encode_again(void **state) {
    (void)state;
    rng r = rng_seeded(23);
    for (int i = 0; i < CODES * 40; i++) {
        const mx_format format = codes[i % CODES];
        case_begin("codes again");
        const weights made = weights_random(&r, format, 1, 384, i % 2 ? WIDE : ORDINARY);
        mx_matrix w = made.matrix;
        w.post = NULL;
        case_rename("codes again of %s", matrix_name(&w));
        uint8_t *row = guarded(mx_columns_bytes(format, 384), 1, "row");
        float *x = guarded_row(384, "x");
        const int columns = w.blocks.columns ? w.blocks.columns : 384, bytes = mx_scale_bytes(w.blocks.scale);
        mx_matrix_widen_row(x, &w, 0);
        for (int j = 0; j < 384 / columns; j++) {
            const uint8_t *at = bytes ? w.scales + j * bytes * (w.blocks.sides ? 2 : 1) : NULL;
            const float scale = mx_scale_value(w.blocks.scale, at);
            const float negative = w.blocks.sides ? mx_scale_value(w.blocks.scale, at + bytes) : scale;
            mx_block_encode(format, row, j * columns, columns, x + j * columns, scale, negative,
                            w.blocks.zeros ? w.zeros[j] : 0);
        }
        for (int k = 0; k < 384; k++) {
            const unsigned old = mx_element_get(format, w.data, k), found = mx_element_get(format, row, k);
            /* with a scale of 0 all are zero */
            check(found == old || x[k] == 0.0f, "%s: column %d was %#x, is %#x", case_name(), k, old, found);
        }
        case_end();
    }
}

/* Against the weights in double that are made with the codes. */
static void test_safe_in_bf16(void **state) {
    (void)state;
    static const weight_kind kinds[] = {ORDINARY, EXTREME, LARGEST, WIDE};
    rng r = rng_seeded(25);
    int safe = 0;
    for (int i = 0; i < CODES * 80; i++) {
        case_begin("safe in bf16");
        const weights made = weights_random(&r, codes[i % CODES], 1 + i % 3, 128, kinds[i / CODES % 4]);
        const mx_matrix *w = &made.matrix;
        case_rename("bf16_safe of %s", matrix_name(w));
        check(mx_rows_bf16_safe(w, 0, w->rows) == w->bf16_safe, "%s: is %d", case_name(), w->bf16_safe);
        safe += w->bf16_safe;
        case_end();
    }
    assert_true(safe > CODES * 10 && safe < CODES * 70);
}

/* Random numbers, scales and zeros: nearest in double. */
static void test_encode_nearest(void **state) {
    (void)state;
    rng r = rng_seeded(24);
    for (int i = 0; i < CODES * 60; i++) {
        const mx_format format = codes[i % CODES];
        const bool integer = mx_is_integer_format(format);
        const float scale = ldexpf(rng_uniform(&r, 0.5f, 1.0f), (int)rng_below(&r, 40) - 20),
                    negative = integer || i % 4 ? scale : scale * rng_uniform(&r, 0.5f, 2.0f);
        const int zero = !integer ? 0 : format == MX_INT8 ? (int)rng_below(&r, 256) - 128 : (int)rng_below(&r, 16) - 8;
        const double range = 1.5 * (double)mx_element_largest(format);
        uint8_t row[96];
        float x[32];
        memset(row, 0xa5, sizeof row);
        for (int k = 0; k < 32; k++)
            x[k] = (float)((double)scale * range) * rng_uniform(&r, -1.0f, 1.0f) * (k % 2 ? 1.0f : 0.1f);
        mx_block_encode(format, row, 32, 32, x, scale, negative, zero);
        for (int k = 0; k < 32; k++) {
            const double exact = (double)x[k] / (double)(signbit(x[k]) ? negative : scale) + zero;
            const unsigned found = mx_element_get(format, row, 32 + k), best = nearest_code(format, exact);
            check(found == best, "%s of %.17g is %#x, nearest is %#x", code_names[i % CODES], exact, found, best);
        }
        for (int64_t b = 0; b < 96; b++) { /* nothing before and behind */
            const int64_t begin = mx_columns_bytes(format, 32), end = mx_columns_bytes(format, 64);
            check((b >= begin && b < end) || row[b] == 0xa5, "%s: byte %d", code_names[i % CODES], (int)b);
        }
    }
}

static void test_encode_special(void **state) {
    (void)state;
    const float x[16] = {1.0f, -1.0f, NAN, INFINITY, -INFINITY, 0.0f, -0.0f, 1e30f};
    for (int i = 0; i < CODES; i++) { /* a scale of 0: all zero, on its side alone */
        const bool integer = mx_is_integer_format(codes[i]);
        uint8_t row[16];
        mx_block_encode(codes[i], row, 0, 16, x, 0.0f, 0.0f, integer ? 3 : 0);
        for (int k = 0; k < 16; k++)
            assert_true(exact_element(codes[i], mx_element_get(codes[i], row, k)) == (integer ? 3 : 0));
        mx_block_encode(codes[i], row, 0, 16, x, 1.0f, 0.0f, 0);
        assert_true(exact_element(codes[i], mx_element_get(codes[i], row, 0)) == 1.0);
        assert_true(exact_element(codes[i], mx_element_get(codes[i], row, 1)) == 0.0);
        assert_true(exact_element(codes[i], mx_element_get(codes[i], row, 3)) == (double)mx_element_largest(codes[i]));
        assert_true(exact_element(codes[i], mx_element_get(codes[i], row, 4)) == 0.0);
    }
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_golden),
    cmocka_unit_test(test_values),
    cmocka_unit_test(test_scales),
    cmocka_unit_test(test_scale_codes),
    cmocka_unit_test(test_codes_of_values),
    cmocka_unit_test(test_special_codes),
    cmocka_unit_test(test_nearest),
    cmocka_unit_test(test_get_and_put),
    cmocka_unit_test(test_blocks),
    cmocka_unit_test(test_zeros),
    cmocka_unit_test(test_rows),
    cmocka_unit_test(test_encode_again),
    cmocka_unit_test(test_safe_in_bf16),
    cmocka_unit_test(test_encode_nearest),
    cmocka_unit_test(test_encode_special),
    cmocka_unit_test(test_exact_products),
};

const test_group mx_group = {"mx", tests, sizeof tests / sizeof *tests, NULL};
