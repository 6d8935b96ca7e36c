#include <math.h>
#include <string.h>

#include "base/bytes.h"
#include "kernels/mx.h"
#include "kernels/scalar/scalar.h"

enum { LANES = 32, ROWS = 16 }; /* columns summed side by side; activation rows that share a widened weight block */

int64_t mx_packed_floats(int64_t cols) {
    return cols * (int64_t)sizeof(float);
}

void mx_scalar_pack_fp32(uint8_t *out, const float *x, int64_t rows, int64_t cols) {
    memcpy(out, x, (size_t)(rows * cols) * sizeof *x);
}

void mx_round_to_bf16(float *out, const float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) out[i] = mx_bf16_to_f32(mx_f32_to_bf16(x[i]));
}

void mx_round_to_bf16x2(float *out, const float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        float hi = mx_bf16_to_f32(mx_f32_to_bf16(x[i]));
        out[i] = hi + mx_bf16_to_f32(mx_f32_to_bf16(x[i] - hi));
    }
}

void mx_scalar_pack_bf16x2(uint8_t *out, const float *x, int64_t rows, int64_t cols) {
    mx_round_to_bf16x2((float *)out, x, rows * cols);
}

void mx_scalar_pack_bf16(uint8_t *out, const float *x, int64_t rows, int64_t cols) {
    mx_round_to_bf16((float *)out, x, rows * cols);
}

float mx_swiglu(float gate, float up, float limit, float alpha) {
    gate = gate > limit ? limit : gate;
    up = up > limit ? limit : up < -limit ? -limit : up;
    return gate * (1.0f / (1.0f + expf(-alpha * gate))) * (up + 1.0f);
}

static float bias_at(const mx_matmul *m, int64_t n) {
    float v = 0.0f;
    if (!m->bias) return v;
    if (m->bias_format == MX_BF16) return mx_bf16_to_f32(mx_load_u16(m->bias + 2 * n));
    memcpy(&v, m->bias + 4 * n, sizeof v);
    return v;
}

/* sum[i] = weight row n . activation row t0 + i. Column c goes to lane c % 32; lanes fold in halves. */
static void row_products(float sum[ROWS], const mx_matmul *m, int64_t n, int64_t t0, int64_t rows) {
    float lane[ROWS][LANES] = {{0}}, w[LANES];
    for (int64_t block = 0; block < m->w.cols / LANES; block++) {
        mx_matrix_widen_32(w, &m->w, n, block * LANES);
        for (int64_t i = 0; i < rows; i++) {
            int64_t row = m->x_row ? m->x_row[t0 + i] : t0 + i;
            const float *x = (const float *)(m->x + row * m->x_stride) + block * LANES;
            for (int k = 0; k < LANES; k++) lane[i][k] += w[k] * x[k];
        }
    }
    for (int64_t i = 0; i < rows; i++) {
        for (int half = LANES / 2; half > 0; half /= 2) {
            for (int k = 0; k < half; k++) lane[i][k] += lane[i][k + half];
        }
        sum[i] = lane[i][0];
    }
}

/* The sum of output n, finished but for what the epilogue does with it. */
static float output(const mx_matmul *m, int64_t n, float sum) {
    if (m->w.post) sum *= m->w.post[n * m->w.post_step];
    return sum + bias_at(m, n);
}

static float *output_row(const mx_matmul *m, int64_t t) {
    return m->y + (m->y_row ? m->y_row[t] : t) * m->y_stride;
}

void mx_scalar_finish_row(const mx_matmul *m, int64_t t, int64_t n0, int64_t count, const float *sum) {
    float *y = output_row(m, t);
    if (m->epilogue == MX_SWIGLU) {
        for (int64_t i = 0; i < count; i += 2)
            y[(n0 + i) / 2] =
                mx_swiglu(output(m, n0 + i, sum[i]), output(m, n0 + i + 1, sum[i + 1]), m->limit, m->alpha);
        return;
    }
    for (int64_t i = 0; i < count; i++) {
        float value = output(m, n0 + i, sum[i]), *to = y + n0 + i;
        if (m->epilogue == MX_GATED) value = mx_swiglu(*to, value, m->limit, m->alpha);
        *to = m->epilogue == MX_ADD ? *to + value : m->epilogue == MX_SCALE ? value * m->factor[t] : value;
    }
}

static void matmul(const mx_matmul *m) {
    float sum[ROWS], next[ROWS];
    for (int64_t t0 = 0; t0 < m->rows; t0 += ROWS) {
        int64_t rows = m->rows - t0 < ROWS ? m->rows - t0 : ROWS;
        for (int64_t n = m->n0; n < m->n1; n += 2) { /* pairs, for SwiGLU */
            int64_t count = n + 1 < m->n1 ? 2 : 1;
            row_products(sum, m, n, t0, rows);
            if (count == 2) row_products(next, m, n + 1, t0, rows);
            for (int64_t i = 0; i < rows; i++)
                mx_scalar_finish_row(m, t0 + i, n, count, (const float[]){sum[i], count == 2 ? next[i] : 0.0f});
        }
    }
}

const mx_product mx_scalar_product[3] = MX_SCALAR_PACKED(matmul);
