#ifndef MX_MODEL_CONFIG_PRIVATE_H
#define MX_MODEL_CONFIG_PRIVATE_H

#include "model/model.h"

/* Private to model/: what the readers of configurations share. */

/* Sizes that are each in range fit each other. `path` is for messages. */
mx_status mx_config_check(const mx_config *c, const char *path, mx_error *error);

/* The ids that end an answer of the published models, where the vocabulary has them. */
void mx_config_harmony_eos(mx_config *c);

#endif
