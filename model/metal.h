#ifndef MX_MODEL_METAL_H
#define MX_MODEL_METAL_H

#include "base/mapped.h"
#include "model/model.h"

/* Private to model/: the header of OpenAI's model.bin. */
mx_status mx_metal_config(const char *path, mx_config *out, mx_error *error);

/* Bytes before the first tensor: header and vocabulary. */
uint64_t mx_metal_header(const mx_mapped *m);

#endif
