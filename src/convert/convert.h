#ifndef MX_CONVERT_H
#define MX_CONVERT_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "base/threads.h"
#include "model/model.h"

/* A model from one layout into another, bit for bit, in constant memory: docs of `mxrun convert`. */
typedef struct mx_convert_options {
    mx_layout to;                 /* HF, ORIGINAL, METAL: a folder; GGUF: a file */
    bool force;                   /* what lies at `out` is replaced, once the new model is whole */
    mx_rounding quantize_experts; /* experts of 16 bits are rounded to MXFP4, as mx_load_options does it */
    bool allow_loss;              /* also where the layout cannot say everything; a warning says what */
    mx_pool *pool;
    const volatile sig_atomic_t *stop;                           /* not 0: end with MX_CANCELLED; NULL: never */
    void (*progress)(void *user, uint64_t done, uint64_t total); /* by the calling thread, in bytes; may be NULL */
    void *user;
} mx_convert_options;

typedef struct mx_converted {
    uint64_t bytes; /* of all files */
    int files;
    bool restored; /* .safetensors and small files are the very ones of the Hugging Face folder that it came from */
} mx_converted;

/* `in`: what mx_location_find finds. Everything is written under the name `out`.incomplete, which becomes `out` when it
 * is on the disk; a run that was killed leaves that behind, and the next one takes it over. MX_INVALID_ARGUMENT: `out`
 * is there, or the layout cannot hold the model; MX_IO: no room, and what the system says. */
mx_status mx_convert(const char *in, const char *out, const mx_convert_options *options, mx_converted *result,
                     mx_error *error);

/* "hf", "gguf", "original" or "metal"; false: none of them. */
bool mx_convert_layout(const char *name, mx_layout *out);

#endif
