#ifndef MX_MODEL_SAFETENSORS_H
#define MX_MODEL_SAFETENSORS_H

#include "base/json.h"
#include "base/mapped.h"
#include "model/model.h"

/* Private to model/: one .safetensors file, mapped, its header checked.
 *
 * Layout: u64 header length, that many bytes of JSON {"name": {"dtype", "shape", "data_offsets"}, "__metadata__"},
 * then the tensors' bytes, to which the offsets count from the end of the header. */
typedef struct mx_safetensors {
    mx_mapped file;
    mx_json_document *header; /* owns the tensors' names */
    mx_tensor *tensor;        /* [count] in the order of their bytes */
    int count;
} mx_safetensors;

/* Refused: what its header does not describe byte for byte. The reference reader's rule is the same (no overlap, no
 * hole, nothing behind the last tensor), so that a file means one thing only; and a file that was cut off or joined
 * wrongly shows it here. Free with mx_safetensors_close, also after a failure. */
mx_status mx_safetensors_open(const char *path, mx_safetensors *out, mx_error *error);
void mx_safetensors_close(mx_safetensors *st); /* all zeros is allowed */

#endif
