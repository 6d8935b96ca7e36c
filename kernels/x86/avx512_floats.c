/* Products of all element codes but the integers. */
#include "kernels/x86/avx512_matmul.h"

void mx_avx512_matmul_e2m1(const mx_matmul *m) {
    if (mx_codes_are_fast(&m->w) && m->w.blocks.sides)
        matmul(m, (mx_format)MX_E2M1_SIDES);
    else if (mx_codes_are_fast(&m->w))
        matmul(m, MX_E2M1);
    else
        mx_avx512_matmul_any(m);
}

void mx_avx512_matmul_fp6(const mx_matmul *m) {
    if (mx_codes_are_fast(&m->w))
        matmul(m, MX_E2M3);
    else
        mx_avx512_matmul_any(m);
}

void mx_avx512_matmul_fp8(const mx_matmul *m) {
    if (mx_codes_are_fast(&m->w))
        matmul(m, MX_E4M3);
    else
        mx_avx512_matmul_any(m);
}
