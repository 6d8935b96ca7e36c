#ifndef MX_KERNELS_X86_AMX_H
#define MX_KERNELS_X86_AMX_H

/* What the files of the AMX tier share. They are compiled twice: for the processor, and on the model of its tiles for
 * the tests (MX_AMX_MODEL), under other names. */
#include "kernels/kernels.h"

#ifdef MX_AMX_MODEL
#define MX_AMX(name) mx_##name##_amx_model
#else
#define MX_AMX(name) mx_##name##_amx
#endif

/* [0] MX_X_BF16X2, [1] MX_X_BF16 */
extern const mx_product MX_AMX(bf16_product)[2], MX_AMX(mxfp4_product)[2], MX_AMX(mxfp4_ggml_product)[2];
extern const mx_product MX_AMX(int8_product), MX_AMX(int8_ggml_product); /* of MXFP4 weights */
enum { MX_AMX_MATMUL_SCRATCH = 148000 };                                 /* floats */

#endif
