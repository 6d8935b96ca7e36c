#ifndef MX_MODEL_SCALES_H
#define MX_MODEL_SCALES_H

#include "model/model.h"

/* Private to model/: scales of MXFP4 (E8M0) and Q8_0 (F16) weights, wherever they lie. */
typedef struct mx_scale_view {
    const mx_tensor *tensor;             /* that holds the scales, for messages */
    const uint8_t *scale, *block;        /* of block 0 of expert 0; F16 scales are looked at without their blocks */
    uint64_t scale_step, block_step;     /* bytes from one block's to the next one's */
    uint64_t scale_stride, block_stride; /* bytes from one expert to the next */
    int64_t experts, rows, per_row;      /* blocks of a row */
    bool *bf16_safe;                     /* set, see mx_experts; NULL: the scales are F16 */
} mx_scale_view;

/* 0xFF is NaN, as is an F16 with the largest exponent, or infinite; and a weight beyond fp32 would be infinite, which
 * no kernel looks for: refused here, once, with its place. `pool` may be NULL. */
mx_status mx_scales_check(const mx_scale_view *view, int count, mx_pool *pool, mx_error *error);

#endif
