#ifndef MX_MODEL_SYNTHETIC_PRIVATE_H
#define MX_MODEL_SYNTHETIC_PRIVATE_H

#include "model/synthetic.h"

/* The tensors of a synthetic model, and their bytes. */

enum { MX_SYNTHETIC_NAME = 80, MX_SYNTHETIC_BLOCK = 1 << 16 };

typedef enum mx_noise {
    MX_NOISE_BF16,  /* a random sign, four powers of two; root mean square about `size` */
    MX_NOISE_GAIN,  /* BF16, 0.5 to 2 */
    MX_NOISE_CODES, /* MXFP4 codes, all alike likely */
    MX_NOISE_SCALES /* E8M0, four neighbouring powers of two; with such codes weights of about `size` */
} mx_noise;

typedef struct mx_synthetic_tensor {
    char name[MX_SYNTHETIC_NAME];
    mx_noise noise;
    float size;
    int dims;
    int64_t shape[4];
    uint64_t bytes;
} mx_synthetic_tensor;

/* In the order of the layers; free with free(). */
mx_status mx_synthetic_plan(const mx_config *c, mx_synthetic_tensor **out, int *count, mx_error *error);

/* Bytes `offset` .. `offset` + `size` - 1 of a tensor; offset is a multiple of MX_SYNTHETIC_BLOCK. `out` is 64-byte
 * aligned. All threads of the pool work. */
void mx_synthetic_fill(mx_pool *pool, const mx_synthetic_tensor *t, uint64_t seed, uint64_t offset, uint64_t size,
                       uint8_t *out);

/* What another maker of the same bytes (kernels/cuda/synthetic.cu) has to know: what all of a tensor's blocks begin
 * with, and the exponent field of the largest power (MX_NOISE_BF16) or the least scale byte (MX_NOISE_SCALES; else 0).
 */
uint64_t mx_synthetic_key(const mx_synthetic_tensor *t, uint64_t seed);
int mx_synthetic_base(const mx_synthetic_tensor *t);

const char *mx_synthetic_dtype(mx_noise noise); /* "BF16", "U8" */

#endif
