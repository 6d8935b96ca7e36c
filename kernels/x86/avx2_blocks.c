/* Products of the element codes (kernels/mx.h), one for each arrangement that formats in use have. What others ask for
 * is widened by scalar code before the same sums. */
#include "kernels/x86/avx2_matmul.h"

static void matmul_widened(const mx_matmul *m) {
    matmul(m, (kind){.format = MX_F32, .widened = true});
}

void mx_avx2_matmul_e2m1(const mx_matmul *m) {
    const mx_blocks *b = &m->w.blocks;
    const bool bytes = b->scale == MX_SCALE_E8M0 || b->scale == MX_SCALE_E4M3;
    if (b->sides && b->columns == 32 && b->scale == MX_SCALE_E8M0)
        matmul(m, (kind){.format = MX_E2M1, .scales = true, .sides = true});
    else if (!bytes || b->sides)
        matmul_widened(m);
    else if (b->columns == 16)
        matmul(m, (kind){.format = MX_E2M1, .scales = true, .halves = true});
    else if (b->columns == 32)
        matmul(m, (kind){.format = MX_E2M1, .scales = true});
    else if (b->columns == 64)
        matmul(m, (kind){.format = MX_E2M1, .scales = true, .shift = 1});
    else
        matmul_widened(m);
}

/* Whether a scale of the rows that are asked for is too large for decode_floats: none but made-up ones are. */
static bool any_large_scale(const mx_matmul *m, mx_format format) {
    const int64_t bytes = mx_row_scale_bytes(&m->w.blocks, m->w.cols);
    uint8_t largest = 0;
    for (int64_t n = m->n0; n < m->n1; n++) {
        const uint8_t *row = m->w.scales + n * m->w.scale_stride;
        for (int64_t i = 0; i < bytes; i++) largest = row[i] > largest ? row[i] : largest;
    }
    return largest >= 255 - f16_shift(format);
}

/* MXFP6 and MXFP8. */
MX_INLINE void matmul_floats(const mx_matmul *m, mx_format format) {
    const mx_blocks *b = &m->w.blocks;
    if (b->columns != 32 || b->scale != MX_SCALE_E8M0 || b->sides || any_large_scale(m, format))
        matmul_widened(m);
    else
        matmul(m, (kind){.format = format, .scales = true});
}

void mx_avx2_matmul_e2m3(const mx_matmul *m) {
    matmul_floats(m, MX_E2M3);
}
void mx_avx2_matmul_e3m2(const mx_matmul *m) {
    matmul_floats(m, MX_E3M2);
}
void mx_avx2_matmul_e4m3(const mx_matmul *m) {
    if (m->w.blocks.columns)
        matmul_floats(m, MX_E4M3);
    else /* FP8 */
        matmul(m, (kind){.format = MX_E4M3});
}
void mx_avx2_matmul_e5m2(const mx_matmul *m) {
    matmul_floats(m, MX_E5M2);
}

static bool is_plain_integer(const mx_blocks *b) {
    return b->columns >= 32 && b->scale == MX_SCALE_BF16 && !b->sides;
}

void mx_avx2_matmul_int8(const mx_matmul *m) {
    if (!is_plain_integer(&m->w.blocks))
        matmul_widened(m);
    else if (m->w.blocks.zeros)
        matmul(m, (kind){.format = MX_INT8, .scales = true, .zeros = true, .shift = -1});
    else if (m->w.blocks.columns == 32)
        matmul(m, (kind){.format = MX_INT8, .scales = true});
    else
        matmul(m, (kind){.format = MX_INT8, .scales = true, .shift = -1});
}

void mx_avx2_matmul_int4(const mx_matmul *m) {
    if (!is_plain_integer(&m->w.blocks))
        matmul_widened(m);
    else if (m->w.blocks.zeros)
        matmul(m, (kind){.format = MX_INT4, .scales = true, .zeros = true, .shift = -1});
    else if (m->w.blocks.columns == 32)
        matmul(m, (kind){.format = MX_INT4, .scales = true});
    else
        matmul(m, (kind){.format = MX_INT4, .scales = true, .shift = -1});
}
