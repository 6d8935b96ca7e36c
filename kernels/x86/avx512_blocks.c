#include "kernels/x86/avx512_matmul.h"

void mx_avx512_matmul_mxfp4(const mx_matmul *m) {
    matmul(m, MX_MXFP4);
}

void mx_avx512_matmul_q8_0(const mx_matmul *m) {
    matmul(m, MX_Q8_0);
}

void mx_avx512_matmul_ggml(const mx_matmul *m) {
    mx_matmul apart = mx_mxfp4_ggml_apart(m);
    matmul(&apart, MX_MXFP4_GGML);
}
