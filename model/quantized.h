#ifndef MX_MODEL_QUANTIZED_H
#define MX_MODEL_QUANTIZED_H

#include "model/checkpoint_private.h"

/* Private to model/: quantised modules of the Hugging Face layout, docs/quantized.md. A module M is a matrix; its
 * tensors M.weight_packed, M.weight_scale ... become an mx_matrix that points into them. */

/* Experts that lie in modules of their own, model.layers.L.mlp.experts.E.gate_proj.* and so on, become one tensor for
 * each kind of theirs, model.layers.L.mlp.experts.gate_proj.* [experts, ...], and gate_proj_bias: in place where one
 * stride leads from expert to expert within a file, else by a recipe. (quantized_experts.c) */
mx_status mx_quantized_experts_read(mx_checkpoint *ck, mx_error *error);

/* ---- a module -----------------------------------------------------------------------------------------------------
 */

enum { MX_MODULE_TENSORS = 5 };

/* The weight of a module, or of all experts' modules of one kind. Where bytes must be looked at (zeros that are packed,
 * post), memory is there, but it is filled by mx_blocks_finish. */
typedef struct mx_block_tensor {
    mx_matrix matrix; /* of expert 0. MX_MXFP4 where it is that; `coded` has the blocks then */
    mx_blocks blocks;
    mx_format coded;                                             /* format of the elements: MX_E2M1 for MX_MXFP4, too */
    int64_t experts;                                             /* 0: the tensors have no dimension of experts */
    int64_t data_stride, scale_stride, zero_stride, post_stride; /* see mx_experts */
    const mx_tensor *data, *scale, *zero, *post, *shape;         /* NULL: there is none */
    bool divides;                                                /* post is 1 / what its tensor says */
    int8_t *zeros;                                               /* to be filled; NULL: they lie in the file */
    float *posts;                                                /* to be filled */
    bool bf16_safe;                                              /* set by mx_blocks_finish */
} mx_block_tensor;

/* Has the module tensors that are more than a weight in 16 or 32 bits? */
bool mx_module_quantized(const mx_checkpoint *ck, const char *module);
/* Its tensors, by their names, types and shapes. `model` is for messages; memory is the checkpoint's.
 * MX_INVALID_FILE: one is missing or wrong; MX_UNSUPPORTED: they are of a format that mxrun does not know. */
mx_status mx_module_read(mx_checkpoint *ck, const char *model, const char *module, int64_t experts, int64_t rows,
                         int64_t cols, mx_block_tensor *out, mx_error *error);

/* Once the bytes are there: fills zeros and posts, and refuses what is no number: scales that are NaN, infinite or (of
 * E4M3) negative, or with which a weight is infinite; elements of E4M3 and E5M2 that are NaN or infinite (only where
 * `elements`, for that reads all of the weights); global scales. `pool` may be NULL. (quantized_check.c) */
mx_status mx_blocks_finish(mx_block_tensor *list, int count, bool elements, mx_pool *pool, mx_error *error);

#endif
