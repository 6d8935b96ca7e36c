#ifndef MX_KERNELS_OPENBLAS_H
#define MX_KERNELS_OPENBLAS_H

#include "kernels/kernels.h"

/* Dense products (weights of any format but MXFP4, fp32 activations) by the OpenBLAS of this machine, which is loaded
 * at the first call. Not batch-invariant: a mode that has to be asked for. x_row must be NULL and w.cols at most
 * MX_OPENBLAS_COLS. */
enum { MX_OPENBLAS_COLS = 16384 };

/* `threads`: how many may multiply at once. MX_UNSUPPORTED: the library cannot be loaded or was built for fewer.
 * `scratch`: floats that one thread needs. */
mx_status mx_openblas_open(int threads, const mx_product **out, int64_t *scratch, mx_error *error);

#endif
