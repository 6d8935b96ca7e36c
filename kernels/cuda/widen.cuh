#ifndef MX_CUDA_WIDEN_CUH
#define MX_CUDA_WIDEN_CUH

/* A lane's part of a unit of weights, in registers as it lies in memory, and its way to the tensor core's A operand.
 * All of it is exact: what a weight is worth in BF16 does not depend on who widens it. */
#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/device.cuh"

enum mx_kind { MX_KIND_BF16, MX_KIND_MXFP4, MX_KIND_MXFP4_WIDE, MX_KIND_Q8_0 };

/* STREAM: global memory that is read once; else shared memory. */
template <bool STREAM> MX_DEVICE uint4 mx_take16(const uint8_t *p) {
    return STREAM ? mx_load16_once(p) : *(const uint4 *)p;
}
template <bool STREAM> MX_DEVICE uint32_t mx_take4(const uint8_t *p) {
    return STREAM ? mx_load4_once(p) : *(const uint32_t *)p;
}

/* Each has
 *   BYTES, SCALES: of a unit
 *   load<STREAM>(data, scales, lane): of the unit that begins there
 *   widen(b, a): block b (0, 1) of 32 columns as the A operands of its two steps. */
template <int KIND> struct mx_unit;

template <> struct mx_unit<MX_KIND_BF16> {
    static constexpr int BYTES = MX_UNIT_BF16, SCALES = 0;
    uint4 a[2][2]; /* [block][step] */

    template <bool STREAM> MX_DEVICE void load(const uint8_t *data, const uint8_t *, int lane) {
        MX_UNROLL
        for (int i = 0; i < 4; i++) a[i / 2][i % 2] = mx_take16<STREAM>(data + 512 * i + 16 * lane);
    }
    MX_DEVICE void widen(int b, uint32_t out[2][4]) const {
        MX_UNROLL
        for (int s = 0; s < 2; s++) {
            out[s][0] = a[b][s].x, out[s][1] = a[b][s].y, out[s][2] = a[b][s].z, out[s][3] = a[b][s].w;
        }
    }
};

/* A pair of codes, as layout.h spreads it, is a BF16 whose exponent is 126 too small: the smallest codes are
 * subnormals. Times 2^(126 + scale - 127) it is the weight. */
template <bool WIDE> MX_DEVICE uint32_t mx_widen_pair(uint32_t pair, uint32_t scale) {
    if (WIDE) pair = mx_mul_bf16x2(pair, 0x7e807e80u);
    return mx_mul_bf16x2(pair, scale);
}

/* What the pairs of a block are multiplied by, twice in a word, of byte `at` of four scales: 2^(scale - 1), or
 * 2^(scale - 127) (a subnormal for 0), which can be any of 0..254. */
template <bool WIDE> MX_DEVICE uint32_t mx_scale_pair(uint32_t scales, int at) {
    const uint32_t byte = scales >> 8 * at & 255;
    if (WIDE) return (byte ? byte << 7 : 0x40) * 0x10001u;
    return byte * 0x800080u + 0x3f003f00u; /* exponent field scale + 126, at most 254 */
}

template <bool WIDE> struct mx_unit_mxfp4 {
    static constexpr int BYTES = MX_UNIT_MXFP4, SCALES = MX_UNIT_MXFP4_SCALES;
    uint4 code; /* [block][rows g, g + 8] */
    uint32_t scale;

    template <bool STREAM> MX_DEVICE void load(const uint8_t *data, const uint8_t *scales, int lane) {
        code = mx_take16<STREAM>(data + 16 * lane);
        scale = mx_take4<STREAM>(scales + lane / 4 * 4);
    }
    /* Row g + 8 * high. */
    MX_DEVICE void widen_row(uint32_t word, uint32_t factor, int high, uint32_t a[2][4]) const {
        const uint32_t all = 0x81c081c0u;
        a[0][high] = mx_widen_pair<WIDE>(word & all, factor);
        a[0][2 + high] = mx_widen_pair<WIDE>(word << 6 & all, factor);
        a[1][high] = mx_widen_pair<WIDE>((word << 10 | word >> 22) & all, factor);
        a[1][2 + high] = mx_widen_pair<WIDE>((word << 4 & 0x81808180u) | (word >> 4 & 0x00400040u), factor);
    }
    MX_DEVICE void widen(int b, uint32_t a[2][4]) const {
        widen_row(b ? code.z : code.x, mx_scale_pair<WIDE>(scale, 2 * b), 0, a);
        widen_row(b ? code.w : code.y, mx_scale_pair<WIDE>(scale, 2 * b + 1), 1, a);
    }
};
template <> struct mx_unit<MX_KIND_MXFP4> : mx_unit_mxfp4<false> {};
template <> struct mx_unit<MX_KIND_MXFP4_WIDE> : mx_unit_mxfp4<true> {};

template <> struct mx_unit<MX_KIND_Q8_0> {
    static constexpr int BYTES = MX_UNIT_Q8_0, SCALES = MX_UNIT_Q8_0_SCALES;
    uint4 code[2];     /* [block]: eight integers of row g, eight of row g + 8 */
    uint32_t scale[2]; /* [block]: F16 of rows g and g + 8 */

    template <bool STREAM> MX_DEVICE void load(const uint8_t *data, const uint8_t *scales, int lane) {
        MX_UNROLL
        for (int b = 0; b < 2; b++) {
            code[b] = mx_take16<STREAM>(data + 512 * b + 16 * lane);
            scale[b] = mx_take4<STREAM>(scales + lane / 4 * 8 + 4 * b);
        }
    }
    /* Bytes 0 and 1 of a word, or 2 and 3, as BF16 numbers: 128 + the low seven bits is a BF16 that has them as its
     * mantissa, and of it 128 is taken, or 256 where the sign bit is set, which is the lowest of 256's exponent. */
    MX_DEVICE static uint32_t pair(uint32_t word, int second) {
        const uint32_t low = second ? word >> 16 : word, high = second ? word >> 8 : word << 8;
        const uint32_t bytes = (low & 0xffffu) | (high & 0xffff0000u); /* in each half's low byte */
        return mx_add_bf16x2((bytes & 0x007f007fu) | 0x43004300u, (bytes & 0x00800080u) | 0xc300c300u);
    }
    MX_DEVICE void widen(int b, uint32_t a[2][4]) const {
        const uint4 c = code[b];
        a[0][0] = pair(c.x, 0), a[0][1] = pair(c.z, 0), a[0][2] = pair(c.x, 1), a[0][3] = pair(c.z, 1);
        a[1][0] = pair(c.y, 0), a[1][1] = pair(c.w, 0), a[1][2] = pair(c.y, 1), a[1][3] = pair(c.w, 1);
    }
};

/* acc[m][first + n] += a block of 32 columns: weights of MT row tiles times NT tiles of eight activation rows, of which
 * x[n][term] are the lane's eight columns. For each step of 16 columns all terms in order. */
template <int MT, int NT, int TERMS, int STRIDE>
MX_DEVICE void mx_block_steps(float acc[MT][STRIDE][4], int first, const uint32_t a[MT][2][4],
                              const uint4 x[NT][TERMS]) {
    MX_UNROLL
    for (int s = 0; s < 2; s++) {
        MX_UNROLL
        for (int term = 0; term < TERMS; term++) {
            MX_UNROLL
            for (int n = 0; n < NT; n++) {
                const uint32_t b[2] = {s ? x[n][term].z : x[n][term].x, s ? x[n][term].w : x[n][term].y};
                MX_UNROLL
                for (int m = 0; m < MT; m++) mx_mma_bf16(acc[m][first + n], a[m][s], b);
            }
        }
    }
}

/* The same with the scales of Q8_0, which a BF16 cannot hold: the block's sum by itself, then times the scale. */
template <int KIND, int MT, int NT, int TERMS, int STRIDE>
MX_DEVICE void mx_block(float acc[MT][STRIDE][4], int first, const mx_unit<KIND> unit[MT], int b,
                        const uint32_t a[MT][2][4], const uint4 x[NT][TERMS]) {
    if constexpr (KIND != MX_KIND_Q8_0) {
        mx_block_steps<MT, NT, TERMS, STRIDE>(acc, first, a, x);
    } else {
        float sum[MT][NT][4] = {};
        mx_block_steps<MT, NT, TERMS, NT>(sum, 0, a, x);
        MX_UNROLL
        for (int i = 0; i < MT * NT * 4; i++) {
            const int m = i / 4 / NT, n = i / 4 % NT, c = i % 4;
            const uint32_t scales = unit[m].scale[b];
            const float scale = c < 2 ? mx_f16_low(scales) : mx_f16_high(scales);
            acc[m][first + n][c] = fmaf(scale, sum[m][n][c], acc[m][first + n][c]);
        }
    }
}

#endif
