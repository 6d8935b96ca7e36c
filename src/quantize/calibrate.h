#ifndef MX_QUANTIZE_CALIBRATE_H
#define MX_QUANTIZE_CALIBRATE_H

#include "quantize/source.h"

/* What goes into each product of a model while a text runs through it: mean squares, and the Hessians of GPTQ. */

typedef struct mx_calibration mx_calibration;

typedef struct mx_calibrate_options {
    const char *text_path;     /* UTF-8 text, or one document a line where it ends in .jsonl ("text" or "messages") */
    int64_t tokens;            /* at most; 0: 32768 */
    int64_t window;            /* tokens that see each other; 0: 2048 (or what the context allows) */
    bool rotated;              /* of the inputs as they are in the model that mx_rotate makes (quantize/rotate.h) */
    uint64_t room;             /* bytes of statistics at once, one layer's at least; 0: half of the memory there is */
    mx_pool *pool;             /* borrowed */
    const mx_weights *weights; /* of the model, borrowed; NULL: opened as long as layers are left to be run */
    void (*progress)(void *user, int64_t done, int64_t total); /* tokens of a run; may be NULL */
    void *user;
    const volatile sig_atomic_t *stop;
} mx_calibrate_options;

/* Reads the text: of a long one windows from all over it, so many that they have `tokens` together. `path`: of the
 * model, a gpt-oss, whose configuration is `config`. Strings of the options are borrowed. */
mx_status mx_calibration_open(const char *path, const mx_config *config, const mx_calibrate_options *options,
                              mx_calibration **out, mx_error *error);
/* Statistics of this module's input are wanted, with `hessian` a Hessian [cols, cols], too. What nobody wants is
 * neither held nor computed. Before the first run. An embedding has none. */
void mx_calibration_want(mx_calibration *c, const mx_module *m, bool hessian);
/* What is wanted of the module's layer is there afterwards, and of as many layers behind as there is room for; those of
 * other layers are gone. Nothing happens where it is there already. Else the text runs through the model, in fp32 on
 * the CPU, as far as the last of these layers, from where the run before ended if that is not behind: cheapest in
 * ascending order of layers, of which lm_head is the last. The same numbers whatever the order, room or threads.
 * MX_INVALID_FILE: NaN or infinity comes in, with the weight that makes it. */
mx_status mx_calibration_run(mx_calibration *c, const mx_module *m, mx_error *error);
/* Of a module's input. rows is 0 for an expert that was never chosen. NULL: it is not there or was not wanted. Valid
 * until the next run. */
const mx_statistics *mx_calibration_of(const mx_calibration *c, const mx_module *m);
int64_t mx_calibration_layers(const mx_calibration *c);  /* that the text went through so far, in all runs */
uint64_t mx_calibration_memory(const mx_calibration *c); /* bytes of the statistics that are there */
void mx_calibration_free(mx_calibration *c);             /* NULL allowed */

#endif
