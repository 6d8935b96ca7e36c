#ifndef MX_QUANTIZE_SOURCE_H
#define MX_QUANTIZE_SOURCE_H

#include "model/model.h"
#include "model/quantize/quantize.h"

/* A model that is to be quantised, as modules: each matrix by its own name, an expert's gate, up and down apart,
 * whatever tensor of the file they lie in. Numbers come as fp32, row by row; what changes them on the way (rotation)
 * puts its own `read` before the module's. */

typedef enum mx_kind {
    MX_KIND_Q,
    MX_KIND_K,
    MX_KIND_V,
    MX_KIND_O,
    MX_KIND_ROUTER,
    MX_KIND_GATE,
    MX_KIND_UP,
    MX_KIND_DOWN,
    MX_KIND_EMBEDDING,
    MX_KIND_LM_HEAD,
    MX_KIND_OTHER, /* a 2-D weight of a model that is no gpt-oss */
    MX_KINDS
} mx_kind;

typedef struct mx_module {
    char name[200];          /* "model.layers.3.mlp.experts.7.gate_proj" */
    const mx_tensor *tensor; /* of the file: where it lies, and its type */
    mx_kind kind;
    int layer, expert;  /* -1: of none */
    int64_t rows, cols; /* [out, in] */
    mx_read_rows *read;
    void *user;
} mx_module;

/* A tensor that is no matrix: norm, bias, sinks. Experts' biases as the file has them, [experts, n]. */
typedef struct mx_vector {
    const mx_tensor *tensor;
    float *changed; /* [all elements] what it is instead; NULL: as it is. Owned by whoever changed it */
} mx_vector;

typedef struct mx_source {
    const char *path;
    mx_checkpoint *checkpoint;
    bool gpt_oss; /* else only the modules' names, kinds OTHER, and no config */
    mx_config config;
    mx_module *module; /* [modules] in the order in which the checkpoint has their tensors; there is room for one more,
                        * lm_head's where it is untied */
    int modules;
    mx_vector *vector;
    int vectors;
    bool untied;               /* lm_head is the embedding in the file, but has become a matrix of its own (rotation) */
    struct mx_source_own *own; /* source.c's */
} mx_source;

/* `path`: a folder in the Hugging Face layout, or any other that mx_location_find knows. A folder whose config.json is
 * of no gpt-oss is taken as a set of named tensors. MXFP4 experts are read as the numbers they are worth. */
mx_status mx_source_open(const char *path, mx_source *out, mx_error *error);
void mx_source_close(mx_source *s);
/* Of an expert that lies as columns in 16 bits, unchanged on the way: all its numbers in one piece, those of gate and
 * up together, in *dtype (BF16 or F16), *count of them. NULL: it is another module. */
const uint8_t *mx_module_plain(const mx_module *m, mx_dtype *dtype, int64_t *count);
mx_module *mx_source_find(const mx_source *s, const char *name); /* NULL: not there */

#endif
