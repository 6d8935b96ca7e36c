#ifndef MX_CONVERT_MAKES_H
#define MX_CONVERT_MAKES_H

#include "convert/output.h"

/* How the tensors of a layout are made of those of the checkpoint. Each returns a description for mx_output_add,
 * without its name and file. */

/* The rows of t, and of `also` and `last` behind it (NULL: none), each element as `dtype`: as it is, BF16 and F16 and
 * Q8_0 as F32, F32 as BF16 where it is one. */
mx_made mx_make_rows(const mx_tensor *t, const mx_tensor *also, const mx_tensor *last, mx_dtype dtype);
/* Of every slice of t [n, rows, ...], each parts-th row beginning with `part`, elements as above. */
mx_made mx_make_every(const mx_tensor *t, int part, int parts, mx_dtype dtype);
/* The same of slice `of` alone, bytes as they are, as one piece. */
mx_made mx_make_every_of(const mx_tensor *t, int64_t of, int part, int parts);
/* GGML's MXFP4 of blocks [experts, rows, columns / 32, 16] and scales, of rows as above. */
mx_made mx_make_mxfp4(const mx_tensor *blocks, const mx_tensor *scales, int part, int parts);
/* t [experts, out, in] of 16 bits as [experts, in, out]. */
mx_made mx_make_turned(const mx_tensor *t);
/* metal: rows of q, k and v, weights or biases; heads of 64 rows whose halves are interleaved, q halved, k quartered.
 */
mx_made mx_make_qkv(const mx_tensor *q, const mx_tensor *k, const mx_tensor *v);
/* metal: scales, 14 higher. */
mx_made mx_make_raised(const mx_tensor *scales);

/* Bytes of `count` elements; 0: not known (mx_dtype OTHER). */
uint64_t mx_dtype_bytes(mx_dtype dtype, uint64_t count);

#endif
