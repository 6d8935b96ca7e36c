#ifndef MX_KERNELS_X86_AVX512BF16_H
#define MX_KERNELS_X86_AVX512BF16_H

/* What the files of the tier of AVX-512 with BF16, VNNI and VBMI share. */

#include "kernels/x86/avx512.h"

/* [precision]; MX_X_BF16X2 and MX_X_BF16 are there. */
extern const mx_product mx_avx512bf16_bf16[3], mx_avx512bf16_mxfp4[3], mx_avx512bf16_mxfp4_ggml[3];
extern const mx_product mx_avx512bf16_q8_0; /* MX_X_BF16 */
/* Of element codes that BF16 holds: E2M1; E2M3 and E3M2; E4M3 and E5M2. */
extern const mx_product mx_avx512bf16_e2m1[3], mx_avx512bf16_fp6[3], mx_avx512bf16_fp8[3];
void mx_avx512bf16_codes_any(const mx_matmul *m, bool split); /* rows packed for E2M1, or for all others */

/* Rows of BF16, or of BF16 halves, in the order of their columns: of all weights but those of 4 bits. */
int64_t mx_avx512bf16_packed_bf16(int64_t cols);
void mx_avx512bf16_pack_bf16(uint8_t *out, const float *x, int64_t rows, int64_t cols);
int64_t mx_avx512bf16_packed_bf16x2(int64_t cols);
void mx_avx512bf16_pack_bf16x2(uint8_t *out, const float *x, int64_t rows, int64_t cols);
/* The same in the order of MXFP4's nibbles, for E2M1, too. */
void mx_avx512bf16_pack_mxfp4_bf16(uint8_t *out, const float *x, int64_t rows, int64_t cols);
void mx_avx512bf16_pack_mxfp4_bf16x2(uint8_t *out, const float *x, int64_t rows, int64_t cols);

/* [scale byte][code]: the 16 values of E2M1 times 2^(scale - 127) in BF16, exact for scales 2 ... 252; twice, since a
 * permute of words looks at 5 bits. */
extern const uint16_t mx_e2m1_bf16[256][32];

#endif
