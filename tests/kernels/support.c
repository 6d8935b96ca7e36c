#include "support.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"
#include "kernels/tiers.h"

test_settings settings;

/* By name; "amx model" is the AMX tier on a model of its tiles, which only the tests have. */
static mx_status tier(const char *name, const mx_kernels **out) {
#ifdef MX_HAS_AMX_MODEL
    if (!strcmp(name, mx_kernels_amx_model.name)) {
        *out = &mx_kernels_amx_model;
        return mx_cpu_detect() & MX_CPU_AVX512_BF16 ? MX_OK : MX_UNSUPPORTED;
    }
#endif
    return mx_kernels_get(name, out, NULL);
}

int tiers_here(const mx_kernels *out[MAX_TIERS]) {
    static const char *const names[MAX_TIERS] = {"scalar",    "avx2", "avx512",  "avx512bf16", "amx",
                                                 "amx model", "neon", "neondot", "neonbf16"};
    static bool told;
    int count = 0;
    for (int i = 0; i < MAX_TIERS; i++) {
        if (settings.tier && strcmp(settings.tier, names[i]) != 0) continue;
        if (tier(names[i], &out[count]) == MX_OK) {
            assert_string_equal(out[count]->name, names[i]);
            count++;
        } else if (!told) {
            print_message("skipped: no tier %s here\n", names[i]);
        }
    }
    told = true;
    return count;
}

rng rng_seeded(uint64_t n) {
    return (rng){n + settings.seed * 0x9e3779b97f4a7c15u};
}

uint32_t rng_bits(rng *r) {
    if (!r->state) r->state = 0x9e3779b97f4a7c15u;
    r->state ^= r->state << 13;
    r->state ^= r->state >> 7;
    r->state ^= r->state << 17;
    return (uint32_t)(r->state * 0x2545f4914f6cdd1du >> 32);
}

float rng_uniform(rng *r, float low, float high) {
    return low + (high - low) * (float)(rng_bits(r) >> 8) * 0x1p-24f;
}

float rng_normal(rng *r) {
    float sum = 0.0f;
    for (int i = 0; i < 4; i++) sum += rng_uniform(r, -1.0f, 1.0f);
    return sum * 0.8660254f;
}

int64_t rng_below(rng *r, int64_t n) {
    return (int64_t)(rng_bits(r) % (uint64_t)n);
}

static int element_size(mx_format format) {
    return format == MX_F32 ? 4 : 2;
}

double exact_f16(uint16_t v) {
    double magnitude = (v >> 10 & 31) ? ldexp(1024 + (v & 1023), (v >> 10 & 31) - 25) : ldexp(v & 1023, -24);
    return v & 0x8000 ? -magnitude : magnitude;
}

double exact_value(const uint8_t *at, mx_format format) {
    uint16_t half;
    uint32_t bits = 0;
    float value;
    if (format == MX_F32) {
        memcpy(&value, at, 4);
        return value;
    }
    memcpy(&half, at, 2);
    if (format == MX_F16) return exact_f16(half);
    bits = (uint32_t)half << 16;
    memcpy(&value, &bits, 4);
    return value;
}

/* Finite BF16 bits. */
static uint16_t random_bf16(rng *r, weight_kind kind) {
    static const uint16_t special[] = {0x0000, 0x8000, 0x0001, 0x8001, 0x007f, 0x0080, 0x3f80, 0x5f7f, 0xdf7f, 0x0040};
    if (kind == LARGEST) return rng_below(r, 2) ? 0x7e7f : 0xfe7f;
    if (kind != ORDINARY && rng_below(r, 4) == 0) return special[rng_below(r, sizeof special / sizeof *special)];
    return mx_f32_to_bf16(rng_normal(r) * 0.1f);
}

static uint8_t random_scale(rng *r, weight_kind kind, int of_row) {
    static const uint8_t special[] = {0, 1, 2, 126, 127, 128, 190};
    static const uint8_t wide[] = {2, 3, 64, 127, 190, 251, 252};
    switch (kind) {
    case ORDINARY:
        return (uint8_t)(118 + rng_below(r, 6));
    case EXTREME:
        return special[rng_below(r, sizeof special)];
    case LARGEST:
        return wide[of_row % (int)sizeof wide];
    case WIDE:
        return of_row < (int)sizeof wide ? wide[of_row] : (uint8_t)(2 + rng_below(r, 251));
    }
    return 0;
}

/* Finite F16 bits. */
static uint16_t random_f16(rng *r, weight_kind kind) {
    static const uint16_t special[] = {0x0000, 0x8000, 0x0001, 0x8001, 0x03ff, 0x0400, 0x8400, 0x3c00, 0x7bff, 0xfbff};
    if (kind == LARGEST) return rng_below(r, 2) ? 0x7bff : 0xfbff;
    if (kind != ORDINARY && rng_below(r, 4) == 0) return special[rng_below(r, sizeof special / sizeof *special)];
    return mx_f32_to_f16(rng_normal(r) * 0.1f);
}

static void fill_q8_0(rng *r, weights *w, uint8_t *data, weight_kind kind) {
    const mx_matrix *m = &w->matrix;
    for (int64_t i = 0; i < m->rows * m->cols; i += 32) {
        uint8_t *block = data + i / m->cols * m->row_stride + i % m->cols / 32 * MX_Q8_0_BYTES;
        const uint16_t scale = kind == ORDINARY ? mx_f32_to_f16(rng_normal(r) * 0.002f) : random_f16(r, kind);
        memcpy(block, &scale, 2);
        for (int j = 0; j < 32; j++) {
            const int q = kind == LARGEST ? (rng_below(r, 2) ? 127 : -128) : (int)rng_below(r, 256) - 128;
            block[2 + j] = (uint8_t)q;
            w->exact[i + j] = exact_f16(scale) * q;
        }
    }
}

/* Either layout. */
static void fill_mxfp4(rng *r, weights *w, uint8_t *data, uint8_t *scales, weight_kind kind) {
    static const double e2m1[8] = {0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0};
    const mx_matrix *m = &w->matrix;
    for (int64_t n = 0; n < m->rows; n++) {
        int of_row = (int)rng_below(r, 9);
        for (int64_t block = 0; block < m->cols / 32; block++) {
            const bool ggml = m->format == MX_MXFP4_GGML;
            uint8_t *at = data + n * m->row_stride + mx_columns_bytes(m->format, 32 * block);
            uint8_t *scale = ggml ? at : scales + n * m->scale_stride + block, *codes = at + ggml;
            *scale = random_scale(r, kind, of_row);
            double factor = ldexp(1.0, *scale - 127);
            for (int j = 0; j < 16; j++) codes[j] = (uint8_t)(rng_bits(r) | (kind == LARGEST ? 0x77 : 0));
            for (int i = 0; i < 32; i++) {
                const bool high = ggml ? i >= 16 : i % 2;
                const int byte = codes[ggml ? i % 16 : i / 2], code = high ? byte >> 4 : byte & 15;
                w->exact[n * m->cols + 32 * block + i] = (code & 8 ? -e2m1[code & 7] : e2m1[code & 7]) * factor;
            }
        }
    }
}

weights weights_random(rng *r, mx_format format, int64_t rows, int64_t cols, weight_kind kind) {
    static const int64_t pads[] = {0, 0, 1, 2, 16};
    weights w = {.matrix = {.format = format, .rows = rows, .cols = cols}};
    int64_t row = mx_columns_bytes(format, cols);
    w.matrix.row_stride = row + pads[rng_below(r, 5)];
    w.exact = guarded(rows * cols * (int64_t)sizeof *w.exact, 8, "exact weights");
    uint8_t *data = guarded((rows - 1) * w.matrix.row_stride + row, 1, "weights");
    w.matrix.data = data;
    if (format == MX_MXFP4) {
        w.matrix.scale_stride = cols / 32 + pads[rng_below(r, 5)];
        uint8_t *scales = guarded((rows - 1) * w.matrix.scale_stride + cols / 32, 1, "scales");
        w.matrix.scales = scales;
        fill_mxfp4(r, &w, data, scales, kind);
        return w;
    }
    assert_null(w.matrix.scales); /* as in a checkpoint: kernels must not even add to it */
    if (format == MX_MXFP4_GGML) {
        fill_mxfp4(r, &w, data, NULL, kind);
        return w;
    }
    if (format == MX_Q8_0) {
        fill_q8_0(r, &w, data, kind);
        return w;
    }
    for (int64_t i = 0; i < rows * cols; i++) {
        uint8_t *at = data + i / cols * w.matrix.row_stride + i % cols * element_size(format);
        uint16_t half = format == MX_F16 ? random_f16(r, kind) : random_bf16(r, kind);
        float f32 = mx_bf16_to_f32(half) * 1.01f;
        memcpy(at, format == MX_F32 ? (void *)&f32 : (void *)&half, (size_t)element_size(format));
        w.exact[i] = exact_value(at, format);
    }
    return w;
}

void check_close(double found, double expected, double bound, const char *format, ...) {
    if (fabs(found - expected) <= bound) return; /* false for NaN */
    char what[200];
    va_list args;
    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    fail_msg("%s%s%s: found %.9g, expected %.9g within %.3g", case_name(), *case_name() ? ": " : "", what, found,
             expected, bound);
}
