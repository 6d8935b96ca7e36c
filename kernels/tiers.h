#ifndef MX_KERNELS_TIERS_H
#define MX_KERNELS_TIERS_H

#include "kernels/kernels.h"

/* The tables that mx_kernels_get chooses from. Each is complete: a tier names the lower tier's function wherever it
 * has nothing better. The x86 ones exist in x86-64 builds only, the NEON ones in aarch64 builds. */
extern const mx_kernels mx_kernels_scalar;
extern const mx_kernels mx_kernels_avx2;
extern const mx_kernels mx_kernels_avx512;
extern const mx_kernels mx_kernels_avx512bf16;
extern const mx_kernels mx_kernels_amx;
/* The AMX tier on a model of its tiles in C: for tests, in a library of its own (kernels_amx_model). */
extern const mx_kernels mx_kernels_amx_model;
extern const mx_kernels mx_kernels_neon;
extern const mx_kernels mx_kernels_neondot;
extern const mx_kernels mx_kernels_neonbf16;

#endif
