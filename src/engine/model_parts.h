#ifndef MX_ENGINE_MODEL_PARTS_H
#define MX_ENGINE_MODEL_PARTS_H

#include "base/progress.h"
#include "engine/mxrun.h"
#include "model/model.h"

/* A model of random weights (model/synthetic.h), which no file has; for measuring and tests. Of `options` the device
 * counts, which "auto" makes the CPU, threads and memory nodes. `progress` as mx_synthetic_weights takes it. */
mx_status mx_model_make(const mx_config *config, uint64_t seed, const mx_load_options *options, mx_progress *progress,
                        mx_model **out, mx_error *error);

/* What an opened model is made of, for commands that show or check it. Both live as long as the model. */
const mx_config *mx_model_config(const mx_model *model);
const mx_weights *mx_model_weights(const mx_model *model);

#endif
