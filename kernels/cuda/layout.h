#ifndef MX_CUDA_LAYOUT_H
#define MX_CUDA_LAYOUT_H

#include <stdbool.h>
#include <stdint.h>

/* How weights and keys and values lie in device memory. Matrices are cut into units of 16 rows x 64 columns, the rows
 * and columns beyond the matrix zero. A unit is stored in the order in which the 32 lanes of a warp hold it as the A
 * operand of the tensor core's m16n8k16 products (PTX ISA, "Matrix Fragments for mma.m16n8k16"), so that a warp loads
 * it with 16 bytes a lane, one behind the other, and needs no shared memory.
 *
 * In what follows g = lane / 4 (0..7) and t = lane % 4. Lane (g, t) holds rows g and g + 8 of the unit, and of each
 * block of 32 columns the eight columns 8 t .. 8 t + 7. The product of a block is two steps of k = 16, of which step s
 * takes from the lane columns 8 t + 4 s .. 8 t + 4 s + 3: the first two stand where PTX has k = 2 t, 2 t + 1, the other
 * two where it has k = 2 t + 8, 2 t + 9. The sum over k does not mind the order, as long as the B operand has the same:
 * a row of activations gives lane (g, t) the 16 bytes of BF16 at column 32 b + 8 t of row g. */
enum {
    MX_UNIT_ROWS = 16,
    MX_UNIT_COLS = 64,
    MX_UNIT_BF16 = 2048,       /* bytes: [2 blocks][2 steps][32 lanes][2 pairs][2: rows g, g + 8][2 columns] BF16 */
    MX_UNIT_MXFP4 = 512,       /* bytes: [32 lanes][2 blocks][2: rows g, g + 8] words of eight codes, see below */
    MX_UNIT_MXFP4_SCALES = 32, /* bytes: [8: g][2 blocks][2: rows g, g + 8] E8M0 */
    MX_UNIT_Q8_0 = 1024,       /* bytes: [2 blocks][32 lanes][2: rows g, g + 8][8 columns] int8 */
    MX_UNIT_Q8_0_SCALES = 64,  /* bytes: [8: g][2 blocks][2: rows g, g + 8] F16 */
};
/* A word of eight MXFP4 codes c0..c7 (columns 8 t .. 8 t + 7), so that each pair comes out with few instructions: pair
 * p = (c[2p], c[2p + 1]) is spread to two halves of a word, the even code in the low one, as BF16 has its bits: sign at
 * 15, the other three at 8..6. word = pair 0 | pair 1 >> 6 | pair 2 rotated right by 10 | pair 3's bits 15, 8, 7 >> 4 |
 * its bits 6 << 4. No two of them meet. */

/* The sum over a row's columns is cut into four parts, each of whole units: unit u of n belongs to part p with
 * mx_cuda_part(n, p) <= u < mx_cuda_part(n, p + 1). Within a part the products are added in ascending order, for each
 * step of 16 columns all terms of the activation (hi, then lo ...), by the tensor core in fp32; then
 * ((part 0 + part 1) + part 2) + part 3. Every kernel keeps this order, whatever rows it works on: batch invariance. */
enum { MX_CUDA_PARTS = 4 };
#ifdef __CUDACC__
#define MX_BOTH static __host__ __device__ __forceinline__
#else
#define MX_BOTH static inline
#endif

MX_BOTH int mx_cuda_part(int units, int part) {
    return units * part / MX_CUDA_PARTS;
}
MX_BOTH int64_t mx_cuda_units(int64_t cols) {
    return (cols + MX_UNIT_COLS - 1) / MX_UNIT_COLS;
}
MX_BOTH int64_t mx_cuda_row_tiles(int64_t rows) {
    return (rows + MX_UNIT_ROWS - 1) / MX_UNIT_ROWS;
}
/* Columns of an activation row in memory, the last ones zero. */
MX_BOTH int64_t mx_cuda_padded(int64_t cols) {
    return mx_cuda_units(cols) * MX_UNIT_COLS;
}

/* In which row of the laid-out matrix a row of the file stands. Epilogues need pairs of rows in one lane, which holds
 * rows g and g + 8 of a unit. */
typedef enum mx_row_order {
    MX_ROWS_PLAIN,
    MX_ROWS_GATE_UP, /* gate, up, gate, up ...: the gates of eight pairs in a unit's rows 0..7, the ups in 8..15 */
    MX_ROWS_GATE,    /* gates alone: row i stands where row 2 i of MX_ROWS_GATE_UP does */
    MX_ROWS_UP,      /* and where row 2 i + 1 does */
    MX_ROWS_ROPE,    /* of heads: dimensions d and d + head_dim / 2 in rows g and g + 8; head_dim is a multiple of 16 */
} mx_row_order;

MX_BOTH int64_t mx_cuda_row(mx_row_order order, int head_dim, int64_t row) {
    int64_t pair = row, odd = 0;
    switch (order) {
    case MX_ROWS_GATE_UP:
        pair = row / 2;
        odd = row % 2;
        break;
    case MX_ROWS_UP:
        odd = 1;
        break;
    case MX_ROWS_GATE:
        break;
    case MX_ROWS_ROPE: {
        const int64_t d = row % head_dim, half = head_dim / 2;
        return row - d + (d % half) / 8 * 16 + d % half % 8 + (d >= half ? 8 : 0);
    }
    default:
        return row;
    }
    return pair / 8 * 16 + pair % 8 + 8 * odd;
}

/* ---- keys and values ----
 * A page is MX_TILE (64) positions of one layer: for each KV head K [64][head_dim], then V transposed [head_dim][64],
 * elements of the KV format: mirrored from the CPU's pages, because here the tensor core wants eight dimensions of a
 * key and eight keys of a dimension in a row. */

/* Attention of a row is a fixed tree over absolute positions: of each tile of 64 keys that it sees, m = max s,
 * l = sum exp2(s - m), o = sum exp2(s - m) v by itself (s in units of log2: scale * log2 e included); the four tiles of
 * a span (256 positions, aligned) are folded in ascending order, starting from m = -inf, l = 0, o = 0; the spans'
 * results are folded in ascending order into m = sink, l = 1, o = 0. Fold: m' = max(m, m2), l' = l exp2(m - m') + l2
 * exp2(m2 - m'), o' likewise; what sees no key is left out. */
enum { MX_CUDA_SPAN = 256 };

#endif
