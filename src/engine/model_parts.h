#ifndef MX_ENGINE_MODEL_PARTS_H
#define MX_ENGINE_MODEL_PARTS_H

#include "engine/mxrun.h"
#include "model/model.h"

/* What an opened model is made of, for commands that show or check it. Both live as long as the model. */
const mx_config *mx_model_config(const mx_model *model);
const mx_weights *mx_model_weights(const mx_model *model);

#endif
