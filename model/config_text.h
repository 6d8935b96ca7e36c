#ifndef MX_MODEL_CONFIG_TEXT_H
#define MX_MODEL_CONFIG_TEXT_H

#include "base/bytes.h"
#include "model/model.h"

/* config.json and generation_config.json in the form of transformers, which mx_config_read reads as the same
 * configuration. `mxfp4`: the experts are in it. false: no memory. */
bool mx_config_text(mx_bytes *out, const mx_config *c, bool mxfp4);
bool mx_generation_text(mx_bytes *out, const mx_config *c);

#endif
