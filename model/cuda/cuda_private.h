#ifndef MX_MODEL_CUDA_PRIVATE_H
#define MX_MODEL_CUDA_PRIVATE_H

#include "kernels/cuda/cuda_kernels.h"
#include "model/cuda_plugin.h"

/* Private to the plugin: the weights as they lie on the device (weights.c), and what a step is told of them. */

typedef struct mx_cuda_layer {
    const float *attn_norm, *mlp_norm; /* [hidden] */
    const float *sinks;                /* [heads] */
    mx_cuda_matrix qkv; /* heads of q, then of k (MX_ROWS_ROPE), then v (plain): rows = (heads + 2 kv_heads) head_dim */
    mx_cuda_matrix o;   /* plain */
    mx_cuda_matrix router;  /* plain */
    mx_cuda_matrix gate_up; /* of all experts, MX_ROWS_GATE_UP */
    mx_cuda_matrix down;    /* of all experts, plain */
} mx_cuda_layer;

struct mx_cuda_weights {
    mx_config config;
    int device;
    mx_cuda_matrix embedding, lm_head; /* plain; the same memory where they are tied */
    const float *norm;                 /* [hidden] */
    mx_cuda_layer *layer;              /* [config.layers], host memory */
    void *memory;                      /* one allocation on the device holds all of it */
    uint64_t bytes;                    /* its size */
};

/* Checks that there are kernels for everything in `w`, then *bytes is what mx_cuda_weights_load will allocate. */
mx_status mx_cuda_weights_bytes(const mx_weights *w, uint64_t *bytes, mx_error *error);
mx_status mx_cuda_weights_load(const mx_weights *w, const mx_cuda_load_options *options, mx_cuda_weights **out,
                               mx_cuda_loaded *loaded, mx_error *error);
void mx_cuda_weights_free(mx_cuda_weights *w);

/* plugin.c: what the library exports */
mx_cuda_plugin_open_fn mx_cuda_plugin_open;
/* measure.c: mx_cuda_plugin.measure */
mx_status mx_cuda_measure(const mx_cuda_weights *w, mx_cuda_rates *out, mx_error *error);

/* backend.c */
mx_status mx_cuda_backend_create(mx_cuda_weights *w, const mx_backend_options *options, mx_backend **out,
                                 mx_error *error);
/* Everything that a backend allocates beside its pages. Needs the configuration alone. */
mx_status mx_cuda_backend_bytes(const mx_config *config, const mx_backend_options *options, uint64_t *bytes,
                                mx_error *error);
mx_precisions mx_cuda_backend_precision(const mx_backend *b);

#endif
