#ifndef MX_QUANTIZE_SHARED_SCALE_H
#define MX_QUANTIZE_SHARED_SCALE_H

#include "quantize/model.h"
#include "quantize/plan.h"

/* Private to src/quantize. NVFP4's tensor scale is one for q, k and v, and one for gate and up (w1 and w3) of a
 * feed-forward or an expert: vLLM joins their matrices into one, which has one such scale, and llm-compressor does the
 * same (update_fused_layer_weight_global_scales). It is that of the largest number in any of them. */
typedef struct mx_shared_scale mx_shared_scale;

mx_status mx_shared_scale_create(const mx_plan *p, mx_shared_scale **out, mx_error *error);
/* The largest finite |w| of the matrices that share a scale with work `index`; 0: none does. Reads those that it has
 * not read before. MX_CANCELLED, MX_NO_MEMORY. */
mx_status mx_shared_scale_largest(mx_shared_scale *s, int index, const mx_model_options *options, float *out,
                                  mx_error *error);
void mx_shared_scale_free(mx_shared_scale *s); /* NULL allowed */

#endif
