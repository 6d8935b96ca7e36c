#ifndef MX_KERNELS_MX_H
#define MX_KERNELS_MX_H

#include "kernels/kernels.h"

/* The block formats, exactly: what a stored weight is worth, and which code a number gets. Scalar C, and the
 * specification of every tier's kernels. Sources: OCP Microscaling Formats (MX) v1.0 for the elements E2M1, E2M3, E3M2,
 * E4M3, E5M2 and the scale E8M0; OCP 8-bit Floating Point (OFP8) v1.0 for E4M3 and E5M2; NVFP4 as NVIDIA and
 * compressed-tensors have it: E2M1, 16 to a block, scale E4M3, and one fp32 number for the tensor.
 *
 * A format is an element code (mx_format: MX_E2M1 ... MX_INT4) and mx_blocks: how many columns share a scale, of which
 * type. A stored weight of row n, column k is
 *     element(code) * scale(n, k / columns)                       floats
 *     (element(code) - zero(n, k / columns)) * scale(...)         integers with zeros
 * and all of it times post[n], which is applied to the finished sum of a product, in fp32 (mx_matrix.post: NVFP4's
 * tensor scale, FP8's scale of a tensor or a channel). Without post every weight is exact in fp32 (elements have at
 * most 8 significant bits, 9 with a zero, scales at most 8), as long as it is within its range.
 *
 * Elements in memory, a row's in ascending columns:
 *     MX_E2M1           4 bits: sign, code 0..7 = 0 0.5 1 1.5 2 3 4 6; the even column in the low nibble
 *     MX_E2M3, MX_E3M2  6 bits, little-endian: column k has bits 6 k ... 6 k + 5 of the row; 4 columns in 3 bytes
 *     MX_E4M3, MX_E5M2  a byte. E4M3: 0x7F and 0xFF are NaN, no infinity, largest 448. E5M2: as IEEE, largest 57344
 *     MX_INT8           a signed byte
 *     MX_INT4           4 bits: 0..15 means -8..7 (code - 8); nibbles as E2M1
 * Scales: one (or two: mx_blocks.sides, the one of positive elements first) for each `columns` columns, a row's in
 * ascending columns: E8M0 (2^(s - 127); 255 is NaN), E4M3 (a byte, never negative),
 * BF16 (2 bytes). Zeros: one int8 a block. */

/* Is it one of this family (which has mx_matrix.blocks)? MX_E2M1 with 32 columns and E8M0 scales is MX_MXFP4: readers
 * make it that, which has the same bytes and faster kernels. */
static inline bool mx_is_block_format(mx_format format) {
    return format >= MX_E2M1 && format <= MX_INT4;
}
static inline bool mx_is_integer_format(mx_format format) {
    return format == MX_INT8 || format == MX_INT4;
}

/* ---- elements ---- */
int mx_element_bits(mx_format format);                   /* 4, 6 or 8 */
float mx_element_value(mx_format format, unsigned code); /* of the low bits of `code`; E4M3 and E5M2 may be NaN, inf */
float mx_element_largest(mx_format format);              /* finite: 6, 7.5, 28, 448, 57344, 127, 7 */
int mx_element_emax(mx_format format);                   /* exponent of the largest: 2, 2, 4, 8, 15, 6, 2 */
/* The nearest, ties to the even code, beyond the largest saturated (infinity too); NaN: NaN where the format has one,
 * else the largest. Integers: nearest, ties to even, saturated at -128..127 and -8..7. */
unsigned mx_element_code(mx_format format, float x);
/* Element k of a row's bytes, and back (bits around it are kept). */
unsigned mx_element_get(mx_format format, const uint8_t *row, int64_t k);
void mx_element_put(mx_format format, uint8_t *row, int64_t k, unsigned code);

/* ---- scales ---- */
static inline int mx_scale_bytes(mx_scale_type type) {
    return type == MX_SCALE_NONE ? 0 : type == MX_SCALE_BF16 ? 2 : 1;
}
/* Bytes of a row's scales, of a row's zeros. `cols` is a multiple of blocks->columns where that is not 0. */
static inline int64_t mx_row_scale_bytes(const mx_blocks *b, int64_t cols) {
    return b->columns ? cols / b->columns * mx_scale_bytes(b->scale) * (b->sides ? 2 : 1) : 0;
}
static inline int64_t mx_row_zero_bytes(const mx_blocks *b, int64_t cols) {
    return b->zeros ? cols / b->columns : 0;
}
float mx_scale_value(mx_scale_type type, const uint8_t *at); /* NaN: E8M0 255, E4M3 0x7F and 0xFF, a NaN of BF16 */
void mx_scale_put(mx_scale_type type, uint8_t *at, float x); /* x > 0, exactly one of the type's; see mx_scale_code */
/* The type's nearest to x > 0 (E8M0: in the logarithm's sense no rounding is defined; x must be a power of two within
 * 2^-127..2^127), ties to even, saturated at the largest finite; as mx_scale_put stores it. */
unsigned mx_scale_code(mx_scale_type type, float x);

/* ---- in BF16 ---- */
/* Is every weight with the scale at `at` 0, or within BF16's normal numbers, 2^-126 .. 0x1.FEp127, and exact in BF16,
 * whatever its element and zero? w: of a block format. */
bool mx_scale_bf16_safe(const mx_matrix *w, const uint8_t *at);
/* mx_matrix.bf16_safe of rows n0 ... n1 - 1, of a block format or MX_MXFP4 (of others but MXFP4_GGML: true). Looks at
 * the elements of blocks whose scales alone leave it open: a block of zeros is safe with any scale. */
bool mx_rows_bf16_safe(const mx_matrix *w, int64_t n0, int64_t n1);

/* ---- rows ---- */
/* Columns k0 ... k0 + 31 of row n, without post; k0 is a multiple of 32 (of w->blocks.columns, where that is larger, it
 * need not be one). Any format of mx_matrix. What scalar products multiply with. */
void mx_matrix_widen_32(float out[32], const mx_matrix *w, int64_t n, int64_t k0);
/* All columns of row n, with post. Any format: rows of an embedding. */
void mx_matrix_widen_row(float *out, const mx_matrix *w, int64_t n);
/* x [columns] to the codes of one block, given what mx_scale_value says of its scales (equal ones, where there is one)
 * and its zero; at columns k0 ... of `row`. Each element is the nearest to x / scale + zero, computed in double. A
 * scale of 0: all codes are of zero. */
void mx_block_encode(mx_format format, uint8_t *row, int64_t k0, int columns, const float *x, float scale,
                     float negative_scale, int zero);

#endif
