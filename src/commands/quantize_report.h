#ifndef MX_QUANTIZE_REPORT_H
#define MX_QUANTIZE_REPORT_H

#include "base/bytes.h"
#include "quantize/model.h"

/* What mxrun quantize says at the end, or with --dry-run. Both return false without memory. */
typedef struct mx_quantize_shown {
    const char *out; /* what was written; NULL: a dry run */
    bool verbose;    /* a line for each matrix, too */
    bool gguf;
} mx_quantize_shown;
bool mx_quantize_text(mx_bytes *out, const mx_quantize_shown *shown, const mx_model_report *report);
bool mx_quantize_json(mx_bytes *out, const mx_quantize_shown *shown, const mx_model_report *report);

#endif
