#ifndef MX_KERNELS_MXFP4_H
#define MX_KERNELS_MXFP4_H

/* The two layouts of MXFP4 as one, for kernels that know the format at compile time. In both the codes of block b of
 * row n are the 16 bytes at data + n * row_stride + b * mx_columns_bytes(format, 32), and its scale is the byte at
 * scales + n * scale_stride + b * mx_scale_step(format). What differs is the column of a nibble: of byte j the low one
 * is column 2 j and the high one 2 j + 1, or (GGML) they are j and j + 16. Kernels that decode both alike have a `pack`
 * for each, which puts the activation of each column where the decoded weight is. */
#include "kernels/kernels.h"

static inline int64_t mx_scale_step(mx_format format) {
    return format == MX_MXFP4_GGML ? MX_MXFP4_GGML_BYTES : 1;
}

/* The same product with codes and scales apart: data is the first block's codes, scales its scale. */
static inline mx_matmul mx_mxfp4_ggml_apart(const mx_matmul *m) {
    mx_matmul apart = *m;
    apart.w.scales = m->w.data;
    apart.w.scale_stride = m->w.row_stride;
    apart.w.data = m->w.data + 1;
    return apart;
}

#endif
