#ifndef MX_TESTS_QUANTIZED_MAKER_H
#define MX_TESTS_QUANTIZED_MAKER_H

#include "checkpoint_maker.h"
#include "kernels/mx.h"

/* Small gpt-oss folders in the formats of docs/quantized.md, codes and scales at random, and beside each its twin: the
 * same numbers in F32. */

enum { Q_LAYERS = 2, Q_HIDDEN = 128, Q_INTERMEDIATE = 128, Q_HEADS = 4, Q_KV_HEADS = 2, Q_HEAD = 32 };
enum { Q_EXPERTS = 4, Q_TOP_K = 2, Q_VOCAB = 48 };

/* One row of the table. */
typedef struct q_form {
    const char *name; /* as mx_weight_name has it */
    const char *part, *dtype;
    mx_format format;
    mx_blocks blocks;
    const char *scale;     /* dtype of weight_scale where there are blocks */
    const char *post, *as; /* tensor and dtype of what everything is multiplied by; NULL: there is none */
    int post_dims;         /* [], [1] or [N, 1] */
    bool divides, bf16_safe;
} q_form;

enum {
    Q_BF16,
    Q_MXFP4,
    Q_MXFP4_16,
    Q_MXFP4_64,
    Q_AMXFP4,
    Q_NVFP4,
    Q_MODELOPT,
    Q_E2M3,
    Q_E3M2,
    Q_MXFP8,
    Q_MXFP8_E5M2,
    Q_FP8,
    Q_FP8_BF16,
    Q_FP8_CHANNEL,
    Q_FP8_CHANNEL_BF16,
    Q_FP8_E5M2,
    Q_INT8_32,
    Q_INT8_64,
    Q_INT8_128,
    Q_INT8_ASYM,
    Q_INT4_32,
    Q_INT4_64,
    Q_INT4_128,
    Q_INT4_ASYM,
    Q_FORMS
};
extern const q_form q_forms[Q_FORMS];

/* Which form each module has, by its name. */
typedef int q_choose(const char *module);

/* `twin` NULL: none is made. `q` and `twin` lie in temporary folders; nothing is written yet. `tied`: without lm_head.
 */
void q_make(maker *q, maker *twin, q_choose *choose, bool tied);
/* The tensor NAME.part of the form that the module has. */
maker_tensor *q_part(maker *q, const char *module, const char *part);
/* Tensors in any order over `files` files. */
void q_scatter(maker *q, int files);

#endif
