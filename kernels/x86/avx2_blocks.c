/* Products of the element codes (kernels/mx.h), one for each arrangement that formats in use have. What others ask for
 * is widened by scalar code before the same sums. */
#include "kernels/x86/avx2_matmul.h"

void mx_avx2_matmul_widened(const mx_matmul *m) {
    matmul(m, (kind){.format = MX_F32, .widened = true});
}

void mx_avx2_matmul_e2m1(const mx_matmul *m) {
    const mx_blocks *b = &m->w.blocks;
    const bool bytes = b->scale == MX_SCALE_E8M0 || b->scale == MX_SCALE_E4M3;
    if (!bytes || b->sides)
        mx_avx2_matmul_widened(m);
    else if (b->columns == 16)
        matmul(m, (kind){.format = MX_E2M1, .scales = true, .halves = true});
    else
        matmul(m, (kind){.format = MX_E2M1, .scales = true});
}

void mx_avx2_matmul_e4m3(const mx_matmul *m) {
    const mx_blocks *b = &m->w.blocks;
    if (!b->columns)
        matmul(m, (kind){.format = MX_E4M3});
    else if (b->columns == 16 || b->scale != MX_SCALE_E8M0 || b->sides)
        mx_avx2_matmul_widened(m);
    else
        matmul(m, (kind){.format = MX_E4M3, .scales = true});
}

void mx_avx2_matmul_e5m2(const mx_matmul *m) {
    const mx_blocks *b = &m->w.blocks;
    if (!b->columns)
        matmul(m, (kind){.format = MX_E5M2});
    else if (b->columns == 16 || b->scale != MX_SCALE_E8M0 || b->sides)
        mx_avx2_matmul_widened(m);
    else
        matmul(m, (kind){.format = MX_E5M2, .scales = true});
}

static bool is_plain_integer(const mx_blocks *b) {
    return b->columns >= 32 && b->scale == MX_SCALE_BF16 && !b->sides;
}

void mx_avx2_matmul_int8(const mx_matmul *m) {
    if (!is_plain_integer(&m->w.blocks))
        mx_avx2_matmul_widened(m);
    else if (m->w.blocks.zeros)
        matmul(m, (kind){.format = MX_INT8, .scales = true, .zeros = true});
    else
        matmul(m, (kind){.format = MX_INT8, .scales = true});
}

void mx_avx2_matmul_int4(const mx_matmul *m) {
    if (!is_plain_integer(&m->w.blocks))
        mx_avx2_matmul_widened(m);
    else if (m->w.blocks.zeros)
        matmul(m, (kind){.format = MX_INT4, .scales = true, .zeros = true});
    else
        matmul(m, (kind){.format = MX_INT4, .scales = true});
}
