/* Precision MX_X_INT8 as kernels/int8.h specifies it. */
#include "kernels/int8.h"

#include <math.h>
#include <string.h>

#include "kernels/mxfp4.h"
#include "kernels/scalar/scalar.h"

int64_t mx_int8_packed_bytes(int64_t cols) {
    return (cols / 32 * (int64_t)sizeof(mx_int8_block) + 63) / 64 * 64;
}

static float magnitude(const float x[32]) {
    float most = 0.0f;
    for (int i = 0; i < 32; i++) {
        if (!isfinite(x[i])) return NAN;
        most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
    }
    return most;
}

static void pack_block(mx_int8_block *out, const float x[32], mx_format format) {
    float most = magnitude(x);
    memset(out, 0, sizeof *out);
    if (isnan(most) || most < 0x1p-100f) {
        out->scale = isnan(most) ? NAN : 1.0f;
        return;
    }
    float inverse = 127.0f / most;
    out->scale = most / 127.0f;
    for (int i = 0; i < 32; i++) {
        int8_t q = (int8_t)rintf(x[i] * inverse);
        out->x[format == MX_MXFP4 ? i % 2 * 16 + i / 2 : i] = q;
        out->start -= 12 * q;
    }
}

static void pack_rows(uint8_t *out, const float *x, int64_t rows, int64_t cols, mx_format format) {
    const int64_t stride = mx_int8_packed_bytes(cols), blocks = cols / 32,
                  used = blocks * (int64_t)sizeof(mx_int8_block);
    for (int64_t t = 0; t < rows; t++, out += stride, x += cols) {
        for (int64_t b = 0; b < blocks; b++) pack_block((mx_int8_block *)out + b, x + 32 * b, format);
        memset(out + used, 0, (size_t)(stride - used));
    }
}

static void pack(uint8_t *out, const float *x, int64_t rows, int64_t cols) {
    pack_rows(out, x, rows, cols, MX_MXFP4);
}
static void pack_ggml(uint8_t *out, const float *x, int64_t rows, int64_t cols) {
    pack_rows(out, x, rows, cols, MX_MXFP4_GGML);
}

/* The sum of weight row n and activation row t. */
static float sum_of(const mx_matmul *m, int64_t n, int64_t t) {
    static const int8_t weight[16] = {MX_INT8_WEIGHTS};
    const mx_int8_block *x = (const mx_int8_block *)(m->x + (m->x_row ? m->x_row[t] : t) * m->x_stride);
    const uint8_t *codes = m->w.data + n * m->w.row_stride, *scales = m->w.scales + n * m->w.scale_stride;
    const int64_t step = mx_columns_bytes(m->w.format, 32);
    float sum = 0.0f;
    for (int64_t b = 0; b < m->w.cols / 32; b++, codes += step, x++) {
        int32_t dot = 0;
        for (int j = 0; j < 16; j++) dot += weight[codes[j] & 15] * x->x[j] + weight[codes[j] >> 4] * x->x[16 + j];
        sum = fmaf((float)dot, x->scale * mx_int8_power(scales[b * mx_scale_step(m->w.format)]), sum);
    }
    return sum;
}

static void matmul(const mx_matmul *m) {
    for (int64_t n = m->n0; n < m->n1; n += 2) { /* pairs, for SwiGLU */
        for (int64_t t = 0; t < m->rows; t++) {
            float sum[2] = {sum_of(m, n, t), n + 1 < m->n1 ? sum_of(m, n + 1, t) : 0.0f};
            mx_scalar_finish_row(m, t, n, n + 1 < m->n1 ? 2 : 1, sum);
        }
    }
}

static void matmul_ggml(const mx_matmul *m) {
    mx_matmul apart = mx_mxfp4_ggml_apart(m);
    matmul(&apart);
}

const mx_product mx_scalar_int8 = {mx_int8_packed_bytes, pack, matmul, false};
const mx_product mx_scalar_int8_ggml = {mx_int8_packed_bytes, pack_ggml, matmul_ggml, false};
