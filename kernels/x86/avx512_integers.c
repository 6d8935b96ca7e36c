/* Products of INT8 and INT4, and of all element codes by the specification. */
#include "kernels/x86/avx512_matmul.h"

void mx_avx512_matmul_any(const mx_matmul *m) {
    matmul(m, (mx_format)MX_ANY_CODES);
}

void mx_avx512_matmul_int8(const mx_matmul *m) {
    if (mx_codes_are_fast(&m->w))
        matmul(m, MX_INT8);
    else
        mx_avx512_matmul_any(m);
}

void mx_avx512_matmul_int4(const mx_matmul *m) {
    if (mx_codes_are_fast(&m->w))
        matmul(m, MX_INT4);
    else
        mx_avx512_matmul_any(m);
}
