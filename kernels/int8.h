#ifndef MX_KERNELS_INT8_H
#define MX_KERNELS_INT8_H

/* Products at precision MX_X_INT8, MXFP4 weights of either layout only: what every tier computes, bit for bit.
 *
 * Activations: groups of 32 columns. With m = max |x| of the group, x becomes scale * q: scale = m / 127,
 * q = x * (127 / m) to the nearest integer, ties to even (two fp32 divisions, one fp32 product, so |q| <= 127).
 * Groups with m < 2^-100 count as zeros: q = 0, scale = 1. Groups with an infinity or a NaN: q = 0, scale = NaN, which
 * makes every output of the row NaN.
 *
 * Weights: w = 2 * E2M1, so 0, 1, 2, 3, 4, 6, 8, 12 or their negatives, times 2^(s - 128) for the scale byte s.
 *
 * Sum of an output, over groups in ascending order, in fp32, from +0:
 *     sum = fma(dot, scale * 2^(s - 128), sum)
 * dot = sum of w * q over the group, an exact integer, |dot| <= 32 * 12 * 127. The product of the scales is rounded
 * once, as all of fp32 is: exact, except where it is subnormal (below 2^-126) or overflows to infinity. Every scale
 * byte is good (mx_product.flushes is false). Then the epilogue, in the order in which mx_epilogue is written.
 *
 * Only a SwiGLU's exponential is the tier's own; the sums that go into it have the same bits everywhere.
 *
 * One packing for all tiers: a row is cols / 32 blocks, filled up with zeros to a multiple of 64 bytes. x holds the
 * even columns first, since byte j of an MXFP4 block has column 2 j in its low nibble and 2 j + 1 in the high one: 16
 * low nibbles times x[0..15] and 16 high nibbles times x[16..31]. GGML's byte j has columns j and j + 16, so for it x
 * is in order (mx_mxfp4_ggml_*). All else is the same, and so are an output's bits. */

#include <stdint.h>
#include <string.h>

#include "kernels/kernels.h"

typedef struct mx_int8_block {
    int8_t x[32];  /* q of columns 0, 2 ... 30, 1, 3 ... 31; for GGML's layout of 0, 1 ... 31 */
    int32_t start; /* -12 * the sum of x: where dot starts with weights w + 12, for instructions that take unsigned */
    float scale;
} mx_int8_block;

_Static_assert(sizeof(mx_int8_block) == 40, "blocks lie without gaps");

/* 2 * E2M1, by code. */
#define MX_INT8_WEIGHTS 0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12

/* 2^(s - 128) of a scale byte; the first two are subnormal. */
static inline float mx_int8_power(uint8_t s) {
    uint32_t bits = s > 1 ? (uint32_t)(s - 1) << 23 : 0x00200000u << s;
    float v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

int64_t mx_int8_packed_bytes(int64_t cols);
void mx_avx2_pack_int8(uint8_t *out, const float *x, int64_t rows, int64_t cols); /* all x86 tiers' */
void mx_avx2_pack_int8_ggml(uint8_t *out, const float *x, int64_t rows, int64_t cols);
extern const mx_product mx_scalar_int8, mx_avx2_int8, mx_avx512_int8, mx_avx512vnni_int8;
extern const mx_product mx_scalar_int8_ggml, mx_avx2_int8_ggml, mx_avx512_int8_ggml, mx_avx512vnni_int8_ggml;

#endif
