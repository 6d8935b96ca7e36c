#ifndef MX_QUANTIZE_CALIBRATE_H
#define MX_QUANTIZE_CALIBRATE_H

#include "quantize/source.h"

/* What goes into each product of a model while a text runs through it: mean squares, and the Hessians of GPTQ. */

typedef struct mx_calibration mx_calibration;

typedef struct mx_calibrate_options {
    const char *text_path; /* UTF-8 text, or one document a line where it ends in .jsonl ("text" or "messages") */
    int64_t tokens;        /* at most; 0: 32768 */
    int64_t window;        /* tokens that see each other; 0: 2048 (or what the context allows) */
    bool hessian;          /* [cols, cols] for each module besides the squares */
    bool rotated;          /* of the inputs as they are in the model that mx_rotate makes (quantize/rotate.h) */
    int threads;           /* 0: all */
    void (*progress)(void *user, int64_t done, int64_t total); /* tokens; may be NULL */
    void *user;
    const volatile sig_atomic_t *stop;
} mx_calibrate_options;

/* What is read of a long text: windows from all over it, so many that they have `tokens` together.
 *
 * Runs the model at `path` (gpt-oss) over the text, in fp32, on the CPU. Of layers first ... last - 1 only: Hessians of
 * all of them may not fit into memory (mx_calibration_bytes says what a layer takes); lm_head belongs to layer
 * `layers`.
 */
mx_status mx_calibrate(const char *path, const mx_calibrate_options *options, int first, int last, mx_calibration **out,
                       mx_error *error);
uint64_t mx_calibration_bytes(const mx_config *c, int layer, bool hessian);
/* Of a module's input. rows is 0 for an expert that was never chosen. NULL: its layer is not in there, or it is the
 * embedding. Valid as long as the calibration. */
const mx_statistics *mx_calibration_of(const mx_calibration *c, const mx_module *m);
void mx_calibration_free(mx_calibration *c);

#endif
