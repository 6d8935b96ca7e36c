#ifndef MX_MODEL_GGUF_LAYOUT_H
#define MX_MODEL_GGUF_LAYOUT_H

#include "base/gguf.h"
#include "model/model.h"

/* Private to model/: what the keys of a GGUF file say of a model. */

/* general.architecture is "gpt-oss"; Ollama's dialect and others are refused by name. */
mx_status mx_gguf_check_architecture(const mx_gguf *g, mx_error *error);

/* The configuration. What such files lack is that of the published models: every second layer slides, beginning with
 * the first; swiglu limit 7, alpha 1.702; YaRN's betas 32 and 1, its bounds not rounded. */
mx_status mx_gguf_config(const mx_gguf *g, mx_config *out, mx_error *error);

#endif
